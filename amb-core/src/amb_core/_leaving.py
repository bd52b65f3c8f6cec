"""How the core leaves what a backend gave it: in any case, and not for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import anyio

T = TypeVar("T")
#: Seconds that last words to a broker (final settling, closing) may take.
LAST_WORDS = 5.0


@asynccontextmanager
async def left_in_time(manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """`manager`, whose way out is not cancelled and takes a few seconds at most."""
    entered = await manager.__aenter__()
    error: BaseException | None = None
    try:
        yield entered
    except BaseException as caught:
        error = caught
        raise
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + LAST_WORDS):
            await manager.__aexit__(type(error) if error else None, error, None)
