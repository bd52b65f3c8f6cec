"""What a drill works with: one backend, consumers in processes, and the account of what was published."""

from __future__ import annotations

import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import msgspec
from amb_core import Message, MessageBus
from amb_core.broker import Incoming, Settlement, Source
from amb_core.errors import BrokerUnavailable, PublishUnknown
from amb_core.testing import Child, Rig, eventually
from anyio.abc import TaskGroup, TaskStatus

from ._settings import settings
from ._size import Size
from .consumer import Plan

#: Seconds in which a process must have loaded its modules on a busy machine.
LOADS = 40.0


class Stage:
    """One backend for one drill."""

    def __init__(self, rig: Rig, size: Size, host: TaskGroup, measured: dict[str, Any]) -> None:
        self.rig, self.size, self.measured, self._host = rig, size, measured, host
        self._over = anyio.Event()
        self.broker = rig.make()
        self.capabilities = self.broker.capabilities
        self._namespace = f"drill{secrets.token_hex(4)}"
        self.children: list[Child] = []
        self.ok: dict[int, float] = {}
        self.unknown: set[int] = set()

    def topic(self, *words: str) -> str:
        """A topic or pattern that no other drill uses."""
        return ".".join((self._namespace, *words))

    @property
    def patience(self) -> float:
        """Seconds that something may take which must happen."""
        return 40.0 + 2 * (self.capabilities.lease or 0.0) + self.capabilities.new_topic_lag

    async def bus(self, **options: Any) -> MessageBus:
        """A connected bus in this process."""
        bus = MessageBus(self.broker, **options)
        await self._host.start(self._keep, bus)
        return bus

    async def loaded(self, **plan: Any) -> Child:
        """A consumer process that waits for its `go`; the topic is ``jobs`` and the group ``workers``."""
        arguments = {"topic": self.topic("jobs"), "group": "workers"} | plan
        text = msgspec.json.encode(msgspec.convert(arguments, Plan)).decode()
        command = [sys.executable, "-m", "tests.drills.consumer", text]
        child: Child = await self._host.start(self._keep, Child.program(command, settings(self.broker)))
        self.children.append(child)
        return child

    async def _keep(self, context: AbstractAsyncContextManager[Any], *, task_status: TaskStatus[Any]) -> None:
        # In a task of its own, so that a drill may open and end things in any order.
        async with context as opened:
            task_status.started(opened)
            await self._over.wait()

    def end(self) -> None:
        """End the processes, and disconnect the buses."""
        self._over.set()

    async def consumer(self, **plan: Any) -> Child:
        """A consumer process, subscribed."""
        return await go(await self.loaded(**plan))

    async def consumers(self, count: int, **plan: Any) -> list[Child]:
        """So many, subscribed one after the other; their modules load at the same time."""
        return [await go(child) for child in [await self.loaded(**plan) for _ in range(count)]]

    async def publish(self, bus: MessageBus, numbers: Iterable[int], topic: str = "jobs", **data: Any) -> None:
        """Publish each number, confirmed, and note what became of it."""
        for number in numbers:
            message = Message(self.topic(topic), {"n": number, **data})
            try:
                await bus.publish(message, wait_for_confirmation=True)
            except PublishUnknown:
                self.unknown.add(number)
            except BrokerUnavailable:
                continue
            else:
                self.ok[number] = time.monotonic()

    @asynccontextmanager
    async def dead_letters(self, topic: str) -> AsyncIterator[list[Incoming]]:
        """What comes to `topic`, undecoded, as it comes."""
        letters: list[Incoming] = []
        source = Source(id=f"{self._namespace}-letters", pattern=topic, group=None, max_in_flight=50)
        async with (
            self.broker.connect() as connection,
            connection.open(source) as feed,
            anyio.create_task_group() as group,
        ):

            async def read() -> None:
                while True:
                    got = await feed.receive(50)
                    letters.extend(got)
                    await feed.settle([Settlement(letter.token, "ack") for letter in got])

            group.start_soon(read)
            yield letters
            group.cancel_scope.cancel()

    @property
    def got(self) -> list[int]:
        """The numbers that the consumers' handlers were called with, one for each call."""
        return numbers(self.children)

    async def drained(self, within: float | None = None) -> float:
        """Wait until every accepted number was handled; the seconds it took."""
        return await eventually(
            lambda: self.ok.keys() <= set(self.got),
            lambda: f"{len(self.ok.keys() - set(self.got))} of {len(self.ok)} did not come",
            within or self.patience,
        )

    async def quiet(self) -> None:
        """Wait so long that whatever would come again has come."""
        await anyio.sleep(max(1.0, 2 * (self.capabilities.lease or 0.0)))

    def check(self, twice: int = 0) -> int:
        """Nothing is lost, nothing came that nobody published, and at most `twice` came again; how many did."""
        counts = Counter(self.got)
        lost, strange = self.ok.keys() - counts.keys(), counts.keys() - self.ok.keys() - self.unknown
        again = {number: count for number, count in counts.items() if count > 1}
        assert not lost, f"lost {len(lost)} of {len(self.ok)}: {sorted(lost)[:10]}"
        assert not strange, f"never published: {sorted(strange)[:10]}"
        assert sum(again.values()) - len(again) <= twice, (
            f"more than {twice} came twice: {dict(list(again.items())[:10])}"
        )
        return sum(again.values()) - len(again)


def numbers(children: Sequence[Child], event: str = "got") -> list[int]:
    """The numbers that the consumers told of."""
    return [entry["data"] for child in children for entry in child.journal if entry["event"] == event]


async def go(child: Child) -> Child:
    """Let a loaded consumer subscribe."""
    await child.event("loaded", within=LOADS)
    await child.tell(do="go")
    await child.event("ready", within=LOADS)
    return child
