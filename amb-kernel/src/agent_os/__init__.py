"""The names of `amb_kernel` by the import path of Agent OS."""

from __future__ import annotations

from amb_kernel import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]
from amb_kernel import __all__ as __all__
