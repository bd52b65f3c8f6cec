"""The wire format, as docs/wire-format.md describes it, held fast by golden files."""
