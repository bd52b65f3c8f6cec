"""What the kernel promises, it promises on asyncio, uvloop and trio."""

from __future__ import annotations

from tests.core.conftest import anyio_backend as anyio_backend
