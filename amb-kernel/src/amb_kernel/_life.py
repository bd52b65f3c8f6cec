"""The life of an agent: started, serving, crashed and begun again, stopped; and what ends with it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeAlias

import anyio
import msgspec
from amb_core import RetryPolicy
from anyio.abc import TaskGroup, TaskStatus

from ._governor import Governor
from ._identity import Identity
from .errors import KernelNotRunning

log = logging.getLogger("amb.kernel")

State: TypeAlias = Literal["new", "running", "serving", "crashed", "stopped"]
Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class AgentStatus(msgspec.Struct, frozen=True):
    """How an agent does. ``running``: in its ``run``; ``serving``: that has returned, its subscriptions and schedules
    go on; ``crashed``: it raised `error`, and waits to be started again if `restarts` are left."""

    name: str
    state: State
    restarts: int
    error: BaseException | None


class Life:
    """Owns what an agent has begun: tasks, subscriptions, leaderships. All of it ends when the agent does."""

    def __init__(
        self,
        who: Identity,
        governor: Governor,
        begin: Work,
        *,
        grace: float,
        restart: RetryPolicy | None = None,
        keeps: bool = False,
    ) -> None:
        self.who, self.governor = who, governor
        self.state: State = "new"
        self.restarts = 0
        self.error: BaseException | None = None
        #: What to do with each thing it has begun when this run of the agent ends; the last first.
        self.endings: dict[object, Callable[[], Awaitable[object]]] = {}
        #: What begins with each run.
        self.declared: dict[object, Callable[[], None]] = {}
        self._begin, self._restart, self._grace, self._keeps = begin, restart, grace, keeps
        self._group: TaskGroup | None = None
        self._waiting: list[Work] = []
        self._scope: anyio.CancelScope | None = None
        self._ended: anyio.Event
        self._started: Callable[[], None]

    @property
    def status(self) -> AgentStatus:
        """How it does now."""
        return AgentStatus(self.who.name, self.state, self.restarts, self.error)

    def declare(self, thing: object, start: Callable[[], None]) -> None:
        """Start a thing now, or when the agent does. What the kernel itself declares begins with each of its runs; what
        an agent begins in its ``run`` it begins again there."""
        if self._keeps or self._group is None:
            self.declared[thing] = start
        if self._group is not None:
            start()

    def check_running(self, what: str) -> None:
        """Raises: KernelNotRunning if the agent does not run: nothing could go on in the background."""
        if self._group is None:
            raise KernelNotRunning(
                f"{what} needs {self.who.name!r} to run: start the kernel with `async with kernel` or `start()`"
            )

    def spawn(self, work: Work) -> None:
        """Run `work` in the background while the agent lives; if it does not yet, from when it starts."""
        if self._group is None:
            self._waiting.append(work)
        else:
            self._group.start_soon(work)

    async def drop(self, thing: object) -> None:
        """End one thing that it has begun."""
        self.declared.pop(thing, None)
        end = self.endings.pop(thing, None)
        if end is not None:
            await end()

    @property
    def alive(self) -> bool:
        """It runs, or will be started again."""
        return self._scope is not None and not self._ended.is_set()

    async def live(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run the agent until `stop`, beginning again after a crash as often as its restart policy says. Tells
        `task_status` when its first ``run`` has returned."""
        self._started = task_status.started
        self._ended, self._scope = anyio.Event(), anyio.CancelScope()
        self.restarts, self.error = 0, None
        gave_up = False
        try:
            with self._scope:
                while (delay := await self._until_crash()) is not None:
                    await anyio.sleep(delay)
                    self.restarts += 1
                gave_up = True
        finally:
            self.state = "crashed" if gave_up else "stopped"
            self._ended.set()

    async def _until_crash(self) -> float | None:
        """Run it once; returns the seconds until the next try after a crash, None: there is none."""
        try:
            async with anyio.create_task_group() as group:
                self._group, self.state = group, "running"
                await self.governor.auditor.note("agent.started", self.who.name)
                self._start_waiting(group)
                await self._begin()
                self.state = "serving"
                self._started()
                await anyio.sleep_forever()
        except Exception as error:
            self.error = _single(error)
            self.state = "crashed"
        finally:
            self._group = None
            await self._end()
        assert self.error is not None
        delay = None if self._restart is None else self._restart.delay_after(self.restarts + 1, self.error)
        what = "it is not started again" if delay is None else f"it is started again in {delay:.3g} s"
        log.error("agent %r crashed: %s", self.who.name, what, exc_info=self.error)
        text = f"{type(self.error).__name__}: {self.error}"
        await self.governor.auditor.note("agent.crashed", self.who.name, detail={"error": text, "then": what})
        return delay

    def _start_waiting(self, group: TaskGroup) -> None:
        for start in self.declared.values():
            start()
        while self._waiting:
            group.start_soon(self._waiting.pop(0))

    async def _end(self) -> None:
        with anyio.move_on_after(self._grace, shield=True) as scope:
            while self.endings:
                try:
                    await self.endings.popitem()[1]()
                except Exception:
                    log.exception("agent %r did not end cleanly", self.who.name)
        if scope.cancelled_caught:
            log.warning("agent %r did not end within %g s: its handlers still run", self.who.name, self._grace)

    async def stop(self) -> None:
        """End it and all that it began. Returns when that is done; an agent that stops itself does not wait."""
        if not self.alive:
            return
        assert self._scope is not None
        self._scope.cancel()
        await self._ended.wait()
        await self.governor.auditor.note("agent.stopped", self.who.name)


def _single(error: BaseException) -> BaseException:
    """The error itself, out of the groups around it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
