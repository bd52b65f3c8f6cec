"""The command line ``amb``; docs/cli.md describes it."""

from __future__ import annotations

from ._app import main

__all__ = ["main"]
