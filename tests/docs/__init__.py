"""The documentation is run: every page is a session, from its first block to its last."""
