"""Starts the agents: together in one process, or each in its own where the broker reaches that far."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import anyio
import anyio.abc
import msgspec

from amb_core import DeadLetterQueue, MessageBus

from .analyst import analyst
from .governor import governor
from .reader import read
from .reviewer import reviewers
from .source import Source
from .summary import Summary, summarize
from .watcher import DEAD_LETTERS, Books, Watcher

AGENTS: dict[str, Callable[[MessageBus], None]] = {"analyst": analyst, "reviewer": reviewers, "governor": governor}
#: The processes beside the watcher's, where there are several.
PROCESSES = ("analyst", "analyst", "reviewer", "governor", "reader")
PROGRESS = 2.0
#: Seconds that a bus, and then a process, may take to end.
DRAIN, LAST_WORDS = 0.8, 1.2
Say = Callable[[str], None]


class AgentDied(Exception):
    """A process of the demo ended before its time. `code` is its exit code, or minus the signal that killed it."""

    def __init__(self, kind: str, code: int) -> None:
        super().__init__(f"the process of the {kind} ended early with code {code}")
        self.code = code


class Plan(msgspec.Struct, frozen=True):
    """How to run."""

    source: Source
    #: Seconds of silence after which what is missing counts as lost.
    patience: float
    #: The command line that starts one agent; its kind is appended.
    command: list[str]


def make_bus(broker: str | None, url: str | None) -> MessageBus:
    """The bus of one process: all that differs between brokers is in these two arguments."""
    queue = DeadLetterQueue(DEAD_LETTERS, retention_days=1)
    return MessageBus(broker, broker_url=url, dead_letter_queue=queue, drain_timeout=DRAIN)


async def run(bus: MessageBus, plan: Plan, say: Say) -> Summary:
    """Run the agents over `plan.source` until the books balance, or nothing more comes."""
    begin = time.monotonic()
    watcher = Watcher(bus)
    _tell_outages(bus, say)
    together = bus.capabilities.single_process
    if together:
        for join in AGENTS.values():
            join(bus)
    async with bus, anyio.create_task_group() as group:
        if together:
            group.start_soon(read, bus, plan.source)
        else:
            for kind in PROCESSES:
                group.start_soon(_process, [*plan.command, "--agent", kind], kind)
        group.start_soon(_progress, watcher.books, say)
        await watcher.finished(plan.patience)
        group.cancel_scope.cancel()
    return summarize(watcher.books, time.monotonic() - begin)


async def run_agent(kind: str, bus: MessageBus, source: Source) -> None:
    """Be one agent in a process of its own: the reader until it is done, another until SIGTERM."""
    if kind == "reader":
        async with bus:
            await read(bus, source)
    else:
        AGENTS[kind](bus)
        await bus.run_forever()


async def _process(command: list[str], kind: str) -> None:
    """One agent's process, from start to SIGTERM. Raises: AgentDied if it fails."""
    process = await anyio.open_process(
        command, stdin=subprocess.DEVNULL, stdout=None, stderr=None, start_new_session=True
    )
    try:
        code = await process.wait()
        if code != 0:
            raise AgentDied(kind, code)
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _end(process: anyio.abc.Process) -> None:
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(LAST_WORDS):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


def _tell_outages(bus: MessageBus, say: Say) -> None:
    """Say once that the broker is away, however many subscriptions notice, and once that it is back."""
    lost: set[str] = set()

    @bus.on("subscription.lost")
    def away(subscription: str) -> None:
        if not lost:
            say("the broker is away; waiting for it")
        lost.add(subscription)

    @bus.on("subscription.restored")
    def back(subscription: str) -> None:
        lost.discard(subscription)
        if not lost:
            say("the broker is back")


async def _progress(books: Books, say: Say) -> None:
    while True:
        await anyio.sleep(PROGRESS)
        say(f"{len(books.announced)} announced, {len(books.findings)} done, {len(books.dead)} dead letters")


def agent_command(folder: str, limit: int, verbose: bool) -> list[str]:
    """The command line of one agent's process."""
    return [
        sys.executable,
        "-m",
        "amb_core.demo",
        "--input",
        folder,
        "--limit",
        str(limit),
        *(["--verbose"] if verbose else []),
    ]
