"""How the core enters, asks and leaves what a backend gives it: an error that comes of it is an error, and it leaves in
any case, but not for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import anyio

from .concurrency import is_cancelled
from .errors import ConnectionLost

T = TypeVar("T")
#: Seconds that last words to a broker (final settling, closing) may take.
LAST_WORDS = 5.0


@asynccontextmanager
async def left_in_time(manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """`manager`, whose way out is not cancelled and takes a few seconds at most. Raises as `as_failure` says."""
    try:
        entered = await manager.__aenter__()
    except BaseException as caught:
        raise as_failure(caught)  # noqa: B904 - it has its cause
    error: BaseException | None = None
    try:
        yield entered
    except BaseException as caught:
        error = caught
        raise
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + LAST_WORDS):
            try:
                await manager.__aexit__(type(error) if error else None, error, None)
            except BaseException as caught:
                raise as_failure(caught)  # noqa: B904 - it has its cause


async def answered(call: Awaitable[T]) -> T:
    """What a backend answers to `call`. Raises as `as_failure` says."""
    try:
        return await call
    except BaseException as caught:
        raise as_failure(caught)  # noqa: B904 - it has its cause


def as_failure(caught: BaseException, kind: Callable[[str], Exception] = ConnectionLost) -> BaseException:
    """`caught`; or, if it is a cancellation that nobody asked for, an error of that `kind`.

    asyncio's clients let cancellations of tasks and futures of their own escape, and anyio lets one escape that it made
    itself, where a timeout of asyncio's inside ended in the same turn of the loop. Taken for one of ours, it would end
    what runs here without a word."""
    if isinstance(caught, Exception) or not isinstance(caught, anyio.get_cancelled_exc_class()) or is_cancelled():
        return caught
    failure = kind("the broker's client gave up what it was asked for, and does not say why")
    failure.__cause__ = caught
    return failure
