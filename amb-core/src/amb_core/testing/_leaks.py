"""What a case leaves behind: tasks, threads, sockets."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel

from ._wait import eventually

#: The case that runs in this context; tasks started in it inherit it.
running_case: ContextVar[str] = ContextVar("amb_running_case", default="")
_owners: weakref.WeakKeyDictionary[asyncio.Task[Any], str] = weakref.WeakKeyDictionary()


def watch_tasks() -> None:
    """Remember from now on which case starts which task. Does nothing on trio, whose nurseries cannot leak."""
    loop = asyncio._get_running_loop()
    if loop is None:
        return

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        _owners[task] = running_case.get()
        return task

    loop.set_task_factory(factory)


def tasks_of(case: str) -> list[str]:
    """The tasks that a case has left running, by name and coroutine."""
    if asyncio._get_running_loop() is None:
        return []
    mine = asyncio.current_task()
    return [
        _describe(task)
        for task, owner in list(_owners.items())
        if owner == case and task is not mine and not task.done()
    ]


def _describe(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return f"task {task.get_name()} in {getattr(coroutine, '__qualname__', coroutine)!r}"


async def no_tasks(case: str, within: float = 3.0) -> None:
    """Raises: AssertionError with their names if tasks of the case do not end in time."""
    await eventually(lambda: not tasks_of(case), lambda: f"tasks left behind: {', '.join(tasks_of(case))}", within)


class Snapshot:
    """The process's sockets and threads at one moment."""

    def __init__(self) -> None:
        self.files, self.threads = _files(), _threads()

    def leaks(self) -> list[str]:
        """What is there now and was not there then."""
        new = [f"open {name} (fd {fd})" for fd, name in _files().items() if self.files.get(fd) != name]
        return new + [f"thread {thread}" for thread in _threads() - self.threads]

    async def check(self, within: float = 3.0) -> None:
        """Raises: AssertionError with their names if something new stays open."""

        def clean() -> bool:
            if not self.leaks():
                return True
            gc.collect()
            return False

        await eventually(clean, lambda: f"left behind: {', '.join(self.leaks())}", within)


def _files() -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        try:
            name = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if name.startswith(("socket:", "pipe:", "/dev/", "anon_inode:")) and not name.startswith("/dev/null"):
            found[int(entry)] = name
    return found


def _threads() -> set[str]:
    # anyio, trio and asyncio (to look up addresses) keep idle workers: they belong to the event loop.
    pools = ("AnyIO worker", "Trio thread", "asyncio_", "waitpid")
    return {f"{t.name} ({t.ident})" for t in threading.enumerate() if not t.name.startswith(pools)}


def open_descriptors() -> int:
    """How many file descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Resident memory in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def settle_down() -> None:
    """Let callbacks that are due run."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
