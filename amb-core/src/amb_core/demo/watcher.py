"""The watcher: hears everything that agents say, and keeps the books."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

import anyio
import msgspec

from amb_core import Message, MessageBus

from .messages import Commit, Done, File, Finding, Manifest, Obeyed
from .rollcall import answer_as

DEAD_LETTERS = "demo-dead-letters"
#: Seconds that all the agents together may take to start.
START = 30.0


class Dead(msgspec.Struct, frozen=True):
    """A piece of work that failed for good."""

    name: str
    error: str
    attempts: int


class Books(msgspec.Struct):
    """What was heard."""

    #: Seconds from publishing to the watcher, by topic.
    heard: dict[str, list[float]] = msgspec.field(default_factory=lambda: defaultdict(list))
    #: Announced work: what the reader says it published, and what went by.
    manifest: dict[str, str] = {}
    announced: set[str] = set()
    #: How many the reader says there are; None before it is done.
    total: int | None = None
    findings: dict[str, Finding] = {}
    dead: dict[str, Dead] = {}
    orders: set[str] = set()
    #: How many the governor says it gave; None before it is done.
    given: int | None = None
    reports: dict[str, Obeyed] = {}
    #: How often each piece of work was reported.
    handled: Counter[str] = msgspec.field(default_factory=Counter)

    @property
    def lost(self) -> dict[str, str]:
        """Announced work that was neither handled nor became a dead letter."""
        return {
            ident: name
            for ident, name in self.manifest.items()
            if ident not in self.findings and ident not in self.dead
        }

    @property
    def unheard(self) -> dict[str, str]:
        """Announced work whose announcement the watcher did not hear."""
        return {ident: name for ident, name in self.manifest.items() if ident not in self.announced}

    @property
    def unknown(self) -> int:
        """How many announcements the manifest does not name yet."""
        return (self.total or 0) - len(self.manifest)

    @property
    def complete(self) -> bool:
        """The reader and the governor have said how much there is, and all of that was heard."""
        return (
            self.total is not None and self.unknown <= 0 and self.given is not None and self.given <= len(self.orders)
        )

    @property
    def disobeyed(self) -> set[str]:
        """Orders that nobody reported."""
        return self.orders - self.reports.keys()

    @property
    def balanced(self) -> bool:
        """Everything that was announced is accounted for, and every order was obeyed."""
        return self.complete and not (self.lost or self.unheard or self.disobeyed)


class Watcher:
    """Subscribes to everything; `finished` waits until the books balance."""

    def __init__(self, bus: MessageBus) -> None:
        self.books = Books()
        self._balanced = anyio.Event()
        self._last = time.monotonic() + START
        answer_as(bus, "watcher")
        bus.subscriber("agents.#", concurrency=1)(self.hear)
        # Wildcards never match dead letters: they have to be asked for by name.
        bus.subscriber(DEAD_LETTERS, concurrency=1)(self.hear_dead)

    async def hear(self, message: Message) -> None:
        """Note one message."""
        books = self.books
        books.heard[message.topic].append(time.time() - message.timestamp)
        match message.topic:
            case "agents.work.file" | "agents.work.commit":
                books.announced.add(message.id)
            case "agents.work.order":
                books.orders.add(message.id)
            case "agents.report":
                report = msgspec.convert(message.data, Obeyed)
                books.reports[report.order_id] = report
            case "agents.finding":
                finding = msgspec.convert(message.data, Finding)
                books.findings[finding.work_id] = finding
                books.handled[finding.work_id] += 1
            case "agents.reader.manifest":
                books.manifest |= msgspec.convert(message.data, Manifest).work
            case "agents.reader.done":
                books.total = msgspec.convert(message.data, Done).total
            case "agents.governor.done":
                books.given = msgspec.convert(message.data, Done).total
        self._look()

    async def hear_dead(self, message: Message) -> None:
        """Note one dead letter."""
        if message.dead is not None:
            name = _name_of(message.dead.topic, message.data)
            self.books.dead[message.id] = Dead(name, message.dead.error, message.dead.attempts)
        self._look()

    def _look(self) -> None:
        self._last = time.monotonic()
        if self.books.balanced:
            self._balanced.set()

    async def finished(self, patience: float) -> bool:
        """Wait until the books balance. False if nothing was heard for `patience` seconds before they did, or for
        half a minute more at the beginning."""
        while not self._balanced.is_set():
            left = self._last + patience - time.monotonic()
            if left <= 0:
                return False
            with anyio.move_on_after(min(left, 1.0)):
                await self._balanced.wait()
        return True


def _name_of(topic: str, data: object) -> str:
    """What a dead letter was about."""
    kinds: dict[str, type[File] | type[Commit]] = {"agents.work.file": File, "agents.work.commit": Commit}
    return msgspec.convert(data, kinds[topic]).name if topic in kinds else topic
