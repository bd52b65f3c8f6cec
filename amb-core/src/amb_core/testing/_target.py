"""What a case gets: a broker under test, buses on it, a name space of its own, and the knobs to break things."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, Protocol

import anyio
import msgspec

from .._bus import MessageBus
from ..broker import Broker, Capabilities, Connection, Feed, Incoming, Outgoing, Source
from ..memory import InMemoryBroker
from ._ledger import Ledger, Recorder, Then
from .processes import Child
from .proxy import FaultProxy

__all__ = ["Control", "Rig", "Target", "rig_for"]


class Control(Protocol):
    """Power over the server under test. Every method returns when it is done."""

    async def stop(self) -> None:
        """Shut it down in its own way; what it calls durable is kept."""
        ...

    async def kill(self) -> None:
        """End it without a chance to write anything."""
        ...

    async def start(self) -> None:
        """Start it again on the same address; returns when it answers."""
        ...

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP)."""
        ...

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        ...


#: Fixtures about a server; the first three need one in any case.
NEEDS = ("control", "proxy", "processes")
SERVER = (*NEEDS, "impostor", "restricted", "destroy", "strict")


class Rig(msgspec.Struct, frozen=True, kw_only=True):
    """A broker and what the harness can do to it. Only `make` is needed; cases that need more are
    reported as lacking a fixture, never as passed.

    Give the broker a short lease (about a second): cases that watch leases take multiples of it.
    """

    #: A new broker value. Called once per case.
    make: Callable[[], Broker]
    name: str = ""
    control: Control | None = None
    #: Where the server listens, and the same broker at another address: for a proxy in between.
    address: tuple[str, int] | None = None
    through: Callable[[str, int], Broker] | None = None
    #: With credentials that the server refuses; the secret in them is ``"wrong-secret"``.
    impostor: Callable[[], Broker] | None = None
    #: May use the topics below ``<namespace>.open`` and nothing else.
    restricted: Callable[[str], Awaitable[Broker]] | None = None
    #: Deletes what the broker keeps for a topic, groups included.
    destroy: Callable[[str], Awaitable[None]] | None = None
    #: Keeps at most so many messages a topic.
    capped: Callable[[int], Broker] | None = None
    #: May not create topics.
    strict: Callable[[], Broker] | None = None
    #: What the broker does not have at all, and why, by the name of the fixture: those cases count as refused
    #: (``{"strict": "topics need no making"}``).
    absent: dict[str, str] = {}
    #: Leave out what takes long by its nature (a delay of 30 s); for a second event loop.
    quick: bool = False
    #: A missing fixture fails the suite instead of being listed.
    complete: bool = False

    def has_no(self, fixture: str) -> str:
        """Why the broker does not have what `fixture` is about; empty if it does."""
        if fixture in self.absent:
            return self.absent[fixture]
        if fixture in SERVER and self.make().capabilities.single_process and (fixture in NEEDS or self.lacks(fixture)):
            return "lives in one process: no server to restart, no cable to cut, no credentials, no other process"
        return ""

    def lacks(self, fixture: str) -> bool:
        """Whether a case that needs `fixture` cannot run."""
        if fixture == "proxy":
            return self.address is None or self.through is None
        return fixture != "processes" and getattr(self, fixture) is None


def rig_for(broker: Broker) -> Rig:
    """A rig with what every broker has; the memory broker's cap too."""
    rig = Rig(make=lambda: broker, name=type(broker).__name__)
    if not isinstance(broker, InMemoryBroker):
        return rig
    return msgspec.structs.replace(rig, capped=lambda count: msgspec.structs.replace(broker, max_queue_size=count))


class Target:
    """The broker under test, for one case."""

    def __init__(self, rig: Rig, id: str, stack: AsyncExitStack) -> None:
        self.rig, self.id, self._stack = rig, id, stack
        self.broker = rig.make()
        self.capabilities: Capabilities = self.broker.capabilities
        #: The first word of every topic of this case.
        self.namespace = f"k{secrets.token_hex(4)}-{id.lower()}"
        self.ledger = Ledger(f"{self.namespace}", self.capabilities.confirm != "none")
        self._sources = 0

    # --- time

    @property
    def lease(self) -> float:
        """Seconds that an unsettled delivery stays ours; some second where there is no lease."""
        return self.capabilities.lease or 1.0

    @property
    def watch(self) -> float:
        """How long to watch that something does not happen: twice the deadline that might make it happen."""
        return max(0.5, 2 * self.capabilities.lease) if self.capabilities.lease else 0.5

    @property
    def patience(self) -> float:
        """How long something may take that must happen."""
        return 25.0 + self.lease + self.capabilities.new_topic_lag

    # --- names

    def topic(self, *words: str) -> str:
        """A topic or pattern in this case's name space."""
        return ".".join((self.namespace, *words))

    # --- buses and what is below them

    def bus(self, broker: Broker | None = None, **options: Any) -> MessageBus:
        """A bus on the broker, disconnected after the case if the case did not."""
        options.setdefault("drain_timeout", 5.0)
        bus = MessageBus(broker or self.broker, **options)
        self._stack.push_async_callback(_leave, bus)
        return bus

    @asynccontextmanager
    async def connect(self, broker: Broker | None = None) -> AsyncIterator[Connection]:
        """The bare connection, below the bus."""
        async with (broker or self.broker).connect() as connection:
            yield connection

    def source(self, pattern: str, group: str | None = None, *, limit: int = 10, **fields: Any) -> Source:
        """A source for `Connection.open`."""
        self._sources += 1
        return Source(
            id=f"{self.namespace}-raw{self._sources}", pattern=pattern, group=group, max_in_flight=limit, **fields
        )

    async def send_raw(self, topic: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Publish as a foreign producer would, past the bus."""
        async with self.connect() as connection:
            await connection.send([Outgoing(topic, body, headers or {}, confirm=self.capabilities.confirm != "none")])

    async def receive_raw(self, feed: Feed, count: int, within: float | None = None) -> list[Incoming]:
        """Exactly `count` deliveries. Raises: AssertionError if they do not come in time."""
        got: list[Incoming] = []
        with anyio.move_on_after(within or self.patience):
            while len(got) < count:
                got += await feed.receive(count - len(got))
        assert len(got) == count, f"received {len(got)} of {count}"
        return got

    async def nothing_raw(self, feed: Feed, seconds: float) -> None:
        """Watch for `seconds` that the feed delivers nothing."""
        with anyio.move_on_after(seconds):
            while True:
                got = await feed.receive(10)
                assert not got, (
                    f"received {got[0].topic} {got[0].body!r} (attempt {got[0].attempt}) that should not have come"
                )

    # --- handlers

    def recorder(self, name: str = "the handler", group: str | None = None, then: Then | None = None) -> Recorder:
        """A handler that the ledger counts."""
        return self.ledger.recorder(name, group, then)

    def group(self, name: str = "workers") -> dict[str, str]:
        """Subscribe options that share the messages where the broker has groups, and none elsewhere."""
        return {"group": name} if self.capabilities.groups else {}

    async def answering(self, bus: MessageBus, topic: str, handler: Then, **options: Any) -> None:
        """Make `handler` a responder on `bus`; live when this returns."""
        bus.responder(topic, **options)(handler)
        await bus.connect()

    # --- other processes

    async def child(self, topic: str, broker: Broker | None = None, **options: Any) -> Child:
        """A consumer in a process of its own, subscribed when this returns. See `amb_core.testing.child`."""
        child = await self._stack.enter_async_context(Child.running(broker or self.broker, topic, options))
        await child.event("ready", within=30.0)
        return child

    # --- faults

    async def proxied(self) -> tuple[FaultProxy, Broker]:
        """A fault proxy before the server, and the broker behind it."""
        assert self.rig.address is not None and self.rig.through is not None
        proxy = await self._stack.enter_async_context(FaultProxy.to(*self.rig.address))
        return proxy, self.rig.through(proxy.host, proxy.port)

    @property
    def control(self) -> Control:
        """Power over the server."""
        assert self.rig.control is not None
        return self.rig.control

    def scaled(self, full: int, small: int) -> int:
        """A count: `full`, or `small` on a second event loop."""
        return small if self.rig.quick else full


async def _leave(bus: MessageBus) -> None:
    with anyio.CancelScope(shield=True), anyio.fail_after(20):
        await bus.disconnect()


def keys(count: int) -> Sequence[str]:
    """That many ordering keys."""
    return [f"key-{number}" for number in range(count)]


Backend = Literal["asyncio", "uvloop", "trio"]
