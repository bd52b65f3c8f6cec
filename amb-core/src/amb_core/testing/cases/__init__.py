"""The cases, a module per section of the conformance list."""
