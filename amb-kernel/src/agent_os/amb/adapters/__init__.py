"""The names of `amb_core.adapters` by the import path of Agent OS."""

from __future__ import annotations

from typing import Any

from amb_core import adapters


def __getattr__(name: str) -> Any:
    return getattr(adapters, name)


def __dir__() -> list[str]:
    return dir(adapters)
