"""The names of `amb_core` by the import path of Agent OS."""

from __future__ import annotations

from typing import Any

import amb_core
from amb_core import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]
from amb_core import __all__ as __all__


def __getattr__(name: str) -> Any:
    return getattr(amb_core, name)
