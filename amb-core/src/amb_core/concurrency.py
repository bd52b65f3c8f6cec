"""The two waiting primitives AMB is built on, for asyncio, uvloop and trio alike.

A backend may use them; none has to. They exist because a future and a wake-up cost half of
what ``anyio.Event`` does, and every message waits at least once.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio

from .errors import ConfigurationError

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "Future", "Wakeup", "absorb_cancellation", "bounded", "bounded_rest", "drive", "is_cancelled", "new_future",
    "require_asyncio", "resume", "spawn",
]  # fmt: skip

T = TypeVar("T")


class Future(Protocol[T]):
    """A result that one task waits for. Both setters are for the event loop's thread."""

    def done(self) -> bool: ...
    def set_result(self, result: T, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...
    def __await__(self) -> Generator[Any, Any, T]: ...


class _TrioFuture:
    """What ``asyncio.Future`` offers of `Future`, for one waiting trio task."""

    __slots__ = ("_done", "_exception", "_result", "_task")

    def __init__(self) -> None:
        self._done = False
        self._result: Any = None
        self._exception: BaseException | None = None
        self._task: Any = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Any, /) -> None:
        self._finish(result, None)

    def set_exception(self, exception: BaseException, /) -> None:
        self._finish(None, exception)

    def _finish(self, result: Any, exception: BaseException | None) -> None:
        import trio

        if self._done:
            raise RuntimeError("the result is already set")
        self._done, self._result, self._exception = True, result, exception
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        import trio

        if not self._done:
            self._task = trio.lowlevel.current_task()

            def abort(_: Any) -> trio.lowlevel.Abort:
                self._task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if self._exception is not None:
            raise self._exception
        return self._result


def _running_loop() -> Any:
    # asyncio is half of what importing AMB would cost, and whoever runs a loop has it already.
    global _running_loop
    from asyncio import _get_running_loop

    _running_loop = _get_running_loop
    return _running_loop()


def new_future() -> Future[Any]:
    """A fresh future for the running event loop. At most one task may await it."""
    loop = _running_loop()
    return _TrioFuture() if loop is None else loop.create_future()


class Wakeup:
    """A signal for one waiting task. A ``set()`` that comes before ``wait()`` is remembered, once."""

    __slots__ = ("_future", "_set")

    def __init__(self) -> None:
        self._set = False
        self._future: Future[None] | None = None

    def set(self) -> None:
        """Wake the waiting task, or let the next ``wait()`` through. Event loop's thread only."""
        self._set = True
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    async def wait(self) -> None:
        """Return after the next ``set()``, or at once if one is remembered. One task at a time.

        A cancelled ``wait`` keeps a signal that had arrived for the next one."""
        if not self._set:
            self._future = new_future()
            try:
                await self._future
            finally:
                self._future = None
        self._set = False


async def drive(coroutine: Coroutine[Any, Any, T], context: Context, suspended: Callable[[], None]) -> T:
    """Await `coroutine` in the current task, but in `context`; call `suspended` when it first has to wait.

    A coroutine that never waits costs no switch, and whoever started it learns when one that does makes
    room for other work. Context variables it sets stay in `context`.
    """
    try:
        trap = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    suspended()
    return await resume(coroutine, trap, context)


async def bounded(coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
    """Await `coroutine`, at most so long; on asyncio one that never has to wait pays for no timer.

    Raises: TimeoutError."""
    if _running_loop() is None:
        with anyio.fail_after(seconds):
            return await coroutine
    try:
        trap = coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    return await bounded_rest(coroutine, trap, seconds)


async def bounded_rest(coroutine: Coroutine[Any, Any, T], trap: object, seconds: float) -> T:
    """As `bounded`, for a coroutine that was started by hand on asyncio and has yielded `trap`."""
    from asyncio import timeout

    # Not a cancel scope: the coroutine may be inside one of its own by now, and scopes must nest.
    async with timeout(seconds):
        return await resume(coroutine, trap, None)


def _here(function: Callable[..., Any], argument: Any = None) -> Any:
    return function(argument)


@types.coroutine
def resume(coroutine: Coroutine[Any, Any, T], trap: object, context: Context | None) -> Generator[Any, Any, T]:
    """Await the rest of a coroutine that was started by hand and has yielded `trap`; None: in the current context."""
    run = _here if context is None else context.run
    while True:
        try:
            sent = yield trap
        except GeneratorExit:
            coroutine.close() if context is None else context.run(coroutine.close)
            raise
        except BaseException as error:
            step: Callable[[Any], Any] = coroutine.throw
            value: Any = error
        else:
            step, value = coroutine.send, sent
        try:
            trap = run(step, value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def require_asyncio(broker: str) -> None:
    """For a `broker` whose client library knows nothing else. Raises: ConfigurationError on another event loop."""
    if _running_loop() is None:
        raise ConfigurationError(
            f"{broker} runs on asyncio only (uvloop included): run the program with it, or use the memory broker"
        )


def is_cancelled() -> bool:
    """Whether somebody has cancelled the current task, or a scope around it: what a cancellation that is seen where
    nobody did so came from is a library that let one of its own escape."""
    if _running_loop() is None:
        return True  # trio's cancellations have no other source
    import asyncio

    task = asyncio.current_task()
    return (task is not None and task.cancelling() > 0) or anyio.current_effective_deadline() == -math.inf


def absorb_cancellation() -> None:
    """Undo cancellations the current task brought on itself, so that it can go on (asyncio only: trio code
    cannot cancel its own task from outside a scope)."""
    if _running_loop() is not None:
        import asyncio

        task = asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()


def spawn(main: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None] | None:
    """Run ``main()`` in a task that belongs to the event loop, not to the caller's task or context: the one task that
    owns whatever is started in one task and stopped in another. `main` raises nothing. Keep what this returns; it is
    None on trio."""
    if _running_loop() is None:
        import trio

        trio.lowlevel.spawn_system_task(main, name=name)
        return None
    from asyncio import get_running_loop

    return get_running_loop().create_task(main(), name=name, context=Context())
