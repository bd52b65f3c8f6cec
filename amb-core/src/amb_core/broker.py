"""The contract between AMB and a message broker: five verbs and five values.

This file is all that a backend needs to know. A backend translates; it holds no
semantics. Retries, back-off, filters, wildcards, dead letters, time to live,
circuit breaking, settling policy, lease renewal, drain, reconnecting and
serializing are written once, in the core, above this wall.

The life of a backend
---------------------
1. The core builds your `Broker` (an immutable value made of options; building it
   touches no network and no event loop) and enters ``broker.connect()``.
2. For every subscription it enters ``connection.open(source)`` and pulls from the
   `Feed` with ``receive``, runs handlers, and reports what became of each message
   with ``settle``.
3. Publishing goes through ``connection.send``.
4. On the way out the context managers are left, feeds first. There is no ``close()``.

Rules that hold for every method
--------------------------------
- **Who retries:** never the backend. Raise, and the core decides. A client library's
  own retries are switched off where they could hide an outage or repeat a write.
- **What to raise:** an error of `amb_core.errors`. Keep one table in your backend that
  maps native exceptions to them: `Unavailable` (transient: the core backs off and tries
  again), `ConnectionLost` (this `Connection` is finished: the core makes a new one),
  `AuthenticationError`, `AccessDenied`, `NotFound`, `MessageTooLarge`, `LeaseLost`. Chain
  the native exception (``raise ... from native``). Any other exception counts as a bug in
  the backend: it is logged with its traceback and treated as `Unavailable`.
- **Cancellation:** every await may be cancelled. A cancelled ``receive`` must lose nothing:
  what the broker had already handed over comes out of a later ``receive`` or is given back.
- **Tasks:** a backend starts none. If a client library needs one to stay alive, the
  `Connection` context manager owns it and ends it.
- **Time:** absolute times are seconds since the epoch as in ``time.time()``; durations are
  seconds.

Topics are dot-separated words. Patterns add ``*`` (one word) and ``#`` (zero or more words),
anywhere. `amb_core.topics` has the grammar and the one matcher. A feed may hand over messages
whose topic does not match its pattern (a broker's own wildcards may be a superset): the core
matches every message exactly, and acknowledges what does not match.
Topics that begin with ``_amb.`` belong to AMB and never match a pattern that begins with a wildcard.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from .serializer import Schema

__all__ = [
    "INBOX_PREFIX",
    "Backlog",
    "Broker",
    "Capabilities",
    "Connection",
    "Elects",
    "ExtendsLease",
    "Feed",
    "Frame",
    "Framed",
    "Incoming",
    "KeepsSchemas",
    "KnowsDepth",
    "KnowsPeers",
    "NamesSystem",
    "NativeRequests",
    "Outgoing",
    "Replays",
    "ReportsHealth",
    "Settlement",
    "Source",
    "TellsBacklog",
    "Token",
    "Verdict",
    "is_inbox",
]

#: Topics that begin with this are private reply addresses, one per bus. Replies are read by the
#: process that asked and by nobody else, and are worthless after it died: carry them over the
#: lightest channel the broker has. At-most-once is enough; nothing has to be stored.
INBOX_PREFIX = "_amb.inbox."


def is_inbox(topic: str) -> bool:
    """Whether the topic is a private reply address; see `INBOX_PREFIX`."""
    return topic.startswith(INBOX_PREFIX)


#: Whatever a feed needs to find a delivery again. Opaque to the core; hashable, and different for every delivery of a
#: connection, whichever feed it came from.
Token: TypeAlias = object

#: What became of a delivery; see `Settlement`.
Verdict: TypeAlias = Literal["ack", "retry", "release", "discard"]


class Capabilities(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a broker can do, declared once, computed from its options where they change it.

    The defaults mean "cannot": a flag added later breaks no backend. Three readers: the bus
    refuses what is not declared with `UnsupportedError` before any I/O, the conformance kit
    tests what is declared and that the rest is refused, and the documentation tables and
    ``amb backends`` are generated from it.
    """

    #: Accepted messages survive a restart of the broker.
    durable: bool = False
    #: How far an accepted, confirmed publish has got when ``send`` returns.
    confirm: Literal["none", "accepted", "replicated", "fsynced"] = "none"
    #: Several subscribers can share one stream of messages (``Source.group``).
    groups: bool = False
    #: A group without a live member keeps collecting messages.
    durable_groups: bool = False
    #: Who delivers again what was not settled: nobody but the consuming process, or the broker.
    #: Applies to grouped sources; ungrouped sources are always redelivered by the process.
    redelivery: Literal["process", "broker"] = "process"
    #: Seconds after which the broker takes an unsettled delivery back; None: it never does
    #: while the consumer's connection lives.
    lease: float | None = None
    #: The feed implements `ExtendsLease`.
    extend_lease: bool = False
    #: Who counts attempts: nobody, the message's headers, or the broker.
    delivery_count: Literal["none", "envelope", "native"] = "none"
    #: ``retry`` settlements with a delay, and publishing with ``not_before``.
    delay: Literal["none", "emulated", "native"] = "none"
    #: The longest delay in seconds; None: no limit. The core refuses longer ones.
    max_delay: float | None = None
    #: Delivery order: none; per ``key`` for sources with ``ordered_by``; total per topic.
    order: Literal["none", "key", "topic"] = "none"
    #: How far back `Replays` can go: not at all, from the beginning, from a position, from a time.
    replay: Literal["none", "start", "position", "time"] = "none"
    #: Wildcards are bound in the broker, or the feed finds matching topics itself.
    wildcards: Literal["native", "client"] = "client"
    #: Seconds until a wildcard subscription sees a topic that did not exist when it began. Its
    #: first messages are delayed by this, never lost.
    new_topic_lag: float = 0.0
    #: ``Outgoing.expires`` is enforced by the broker, or by the core on arrival.
    ttl: Literal["envelope", "native"] = "envelope"
    #: Only what has been fetched is reordered; or the broker hands out higher lanes first.
    priority: Literal["prefetch", "lanes", "native"] = "prefetch"
    #: Seconds in which a second message with the same id is dropped by the broker; 0: never.
    dedup: float = 0.0
    #: ``Outgoing.mandatory`` is honoured.
    no_responders: bool = False
    #: ``release`` gives back deliveries without spending an attempt.
    return_unstarted: bool = False
    #: The largest body in bytes; None: no limit of its own.
    max_message: int | None = None
    #: The most headers a message may carry, AMB's own included; None: no limit.
    max_headers: int | None = None
    #: The longest topic in characters.
    max_topic: int = 255
    #: What the names of CloudEvents' attributes begin with among the headers, by the protocol's own binding; with ``%``
    #: behind it, their values are percent-encoded.
    cloudevents: str = "ce-%"
    #: Deliveries never leave this process.
    single_process: bool = False
    #: The connection implements `Elects`: one holder at a time for a name.
    elections: bool = False


class Outgoing(msgspec.Struct):
    """One message on its way to the broker. Backends must not change it."""

    #: A valid, concrete topic.
    topic: str
    #: What the serializer made. A backend never looks inside.
    body: bytes
    #: Every header, AMB's own (``amb-…``, ``content-type``) included; carried unchanged.
    headers: dict[str, str]
    #: The ordering key, if any. Travels with the message.
    key: str | None = None
    #: 0 (CRITICAL) to 5 (BACKGROUND); 3 is NORMAL.
    priority: int = 3
    #: Not to be delivered before this time; only set if ``delay`` is declared.
    not_before: float | None = None
    #: Worthless after this time.
    expires: float | None = None
    #: ``send`` returns only when the broker has accepted the message as durably as it can.
    confirm: bool = False
    #: At least one consumer must exist now, else this item fails with `NoResponders`. Only set
    #: if ``no_responders`` is declared.
    mandatory: bool = False


class Framed(msgspec.Struct, frozen=True):
    """What stands before the payload in a body says which schema it was written by; see `KeepsSchemas`."""

    #: None: there is no such schema.
    schema: Schema | None
    #: Where in the body the payload begins.
    start: int = 0
    #: Why there is no schema.
    problem: str = ""


class Incoming(msgspec.Struct):
    """One delivery from the broker."""

    #: The concrete AMB topic it was published to, not a pattern or a physical name.
    topic: str
    body: bytes
    #: What was published. The core takes ownership of the dict. A message from a foreign producer
    #: has whatever string headers it has; none is fine.
    headers: dict[str, str]
    #: Identifies the delivery in ``settle`` and ``extend``.
    token: Token
    key: str | None = None
    #: 1 for the first delivery; as counted by the broker or carried in the message.
    attempt: int = 1
    #: Where the broker keeps it (offset, stream id), for logs, dead letters and replay.
    position: str | None = None
    #: The client library's own object, for users who need more.
    native: object = None
    #: Set by connections that keep schemas, for a body that is framed or ought to be.
    framed: Framed | None = None


class Settlement(msgspec.Struct):
    """What became of one delivery.

    ``ack``: done, never deliver it to this group again.
    ``retry``: deliver it again to this group only, not before ``delay`` seconds have passed, with
    attempt ``attempt + 1`` and the bytes and headers of the original. A broker that cannot do that
    in one step stores the later copy first and removes the original second: a crash in between may
    deliver twice, never lose.
    ``release``: it never started; give it back now, as if it had not been handed over, without
    spending an attempt where ``return_unstarted`` is declared.
    ``discard``: it failed for good (the core has already stored a dead letter if there is to be
    one); never deliver it again.
    """

    token: Token
    verdict: Verdict
    #: Seconds; only for ``retry``. Never above ``max_delay``.
    delay: float = 0.0
    #: The attempt that has just been made; only for ``retry``.
    attempt: int = 1


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a feed is to deliver."""

    #: Unique and stable for the life of the subscription, reconnects included.
    id: str
    #: A topic or pattern, validated.
    pattern: str
    #: Members of a group share its messages. The group's identity is (group, pattern): groups of
    #: one name on different patterns are different groups. None: this source gets every message,
    #: from the moment ``open`` returns, and leaves nothing behind in the broker.
    group: str | None = None
    #: Where a group that does not exist yet begins.
    start: Literal["latest", "earliest"] = "latest"
    #: Messages with equal keys go to one member at a time and in order.
    ordered_by: Literal["key"] | None = None
    #: The most unsettled deliveries the core will hold.
    max_in_flight: int = 10


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """What there is for a source in the broker, for all members of its group together. None: the broker does not say.
    Numbers may be approximate."""

    #: Messages that wait: stored, and handed over to no member.
    waiting: int | None = None
    #: Messages that are not settled: those that wait, and those that some member holds.
    unsettled: int | None = None


class Feed(Protocol):
    """Deliveries of one source, pulled by the core."""

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """Return between 1 and `limit` deliveries, higher priorities first.

        `limit` is the number of free handler slots: fetch no more than that, so that nothing ages
        in a buffer. Return what is there; if nothing is, wait, or with ``wait=False`` return an
        empty sequence at once. A waiting ``receive`` on a network broker returns empty every few
        seconds (at most 5), so that the core can tell waiting from hanging. Never called
        concurrently with itself; ``settle`` and ``extend`` may run meanwhile.

        Raises: `Unavailable` or `ConnectionLost`: the feed is finished, the core opens it again;
        `AccessDenied`, `NotFound`: as `Connection.open`.
        """
        ...

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """Carry out the outcomes, in one batch where the broker can. Returns when they are done.

        Never called concurrently with itself. Partial failure is normal: raise
        `PartialFailure` with the index of each failed item; everything not named went through.
        A delivery that is no longer ours is `LeaseLost`, and must not touch the newer delivery.
        The core offers what failed as `Unavailable` again, also to the next feed of the same
        source after a reconnect: an unknown token there is `LeaseLost`, not a crash. Settling the
        same token twice is a no-op.
        """
        ...


class Connection(Protocol):
    """A live connection. Used from one event loop; its methods may run concurrently."""

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """Hand the messages to the broker in order, pipelined where it can.

        Returns when the broker has accepted all of them, or, for items without ``confirm``, at
        the latest when they are written and a failure would still be reported. May block for
        back-pressure. Raises `PartialFailure` with the index of each failed item (everything
        not named went through), or one error for all. If the connection broke before the answer
        came, the outcome is `PublishUnknown`, not a retry.
        """
        ...

    def open(self, source: Source) -> AbstractAsyncContextManager[Feed]:
        """Subscribe. Entering returns when the source is live: what is published afterwards,
        by anybody, is delivered. Leaving gives back what was handed over and not settled (a
        group's other members get it at once where the broker allows it) and, for a source
        without a group, removes every trace.

        Called concurrently for different sources. Entered again with the same source after a
        failure. Raises: `AccessDenied`, `NotFound` (no such topic and the broker may not create
        it), `Unavailable`, `ConnectionLost`.
        """
        ...


class Broker(Protocol):
    """An immutable value: options, not a socket. Cheap to build, compare and print."""

    @property
    def capabilities(self) -> Capabilities:
        """Computed from the options alone."""
        ...

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Connect. Import the client library here, not at module level.

        Entering returns when the broker has answered, authentication included. One attempt: the
        core retries until its deadline. Raises: `Unavailable` (refused, unreachable, timed
        out), `AuthenticationError`, `AccessDenied`.
        """
        ...


# Optional abilities: the core looks for them once, with ``isinstance``.


@runtime_checkable
class ExtendsLease(Protocol):
    """On a `Feed`: keeps deliveries ours while their handlers run."""

    async def extend(self, tokens: Sequence[Token]) -> None:
        """Restart the lease of each delivery. Called about every quarter of the lease.

        Raises: `PartialFailure` with `LeaseLost` for those no longer ours.
        """
        ...


@runtime_checkable
class KnowsPeers(Protocol):
    """On a `Feed`: tells whether anybody else would ever get what this feed leaves behind."""

    def last_consumer(self) -> bool:
        """True: what is not consumed now is gone when the connection closes. The core then
        finishes the backlog when draining, within its grace time, instead of handing it back.
        Does not block."""
        ...

    def tries_again(self) -> bool:
        """True: a delivery that failed waits in the broker for its next attempt; the core, finishing
        the backlog, waits for that too. Does not block."""
        ...


@runtime_checkable
class KnowsDepth(Protocol):
    """On a `Feed`: tells how much waits, if that is known without asking the broker."""

    def depth(self) -> int:
        """Messages of this source that the broker could hand over now and has not. Does not block; may be called
        from another thread."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """On a `Feed`: can ask for what comes next in the same breath as it tells what became of what was before."""

    def expect(self, limit: int) -> None:
        """When the ``settle`` that follows at once has ended, the core will call ``receive`` for so many, unless it
        is paused or ends meanwhile. Does not block."""
        ...


@runtime_checkable
class Withdraws(Protocol):
    """On a `Feed`: what it has asked the broker for may come when nobody receives any more."""

    async def withdraw(self) -> None:
        """Nobody calls ``receive`` for now: let others have, as by ``release``, what was asked for and not handed over,
        whether it is here or comes yet. The next ``receive`` ends that, and may overlap with this one's end; there may
        be none. Not called for sources without a group. Raises as ``settle``."""
        ...


@runtime_checkable
class TellsBacklog(Protocol):
    """On a `Feed`: asks the broker how much there is to do."""

    async def backlog(self) -> Backlog:
        """What there is for this source. Only called while metrics are on, every few seconds, beside ``receive``: it
        must be cheap for the broker and disturb no delivery. Raises as ``receive``."""
        ...


class NamesSystem(Protocol):
    """On a `Broker`: what OpenTelemetry calls it, if that is not the name that it is registered under."""

    #: A value of ``messaging.system``.
    messaging_system: ClassVar[str]


@runtime_checkable
class Replays(Protocol):
    """On a `Connection`: reads what is stored, disturbing no group."""

    def replay(self, pattern: str, since: float | str | None, until: float | None) -> AsyncIterator[Incoming]:
        """Yield stored messages that match `pattern`, oldest first, and end at the message that was
        the newest when the replay began.

        `since`: epoch seconds, a position (the string from ``Incoming.position``: start after it),
        or None for the beginning. `until`: epoch seconds. Tokens are not settled.
        """
        ...


@runtime_checkable
class NativeRequests(Protocol):
    """On a `Connection`: a reply address that pushes instead of a feed on `INBOX_PREFIX`."""

    def inbox(self, address: str, deliver: Callable[[Incoming], None]) -> AbstractAsyncContextManager[None]:
        """Call `deliver` for each message published to the topic `address`, from the event
        loop's thread. `deliver` neither blocks nor raises. Entering returns when live."""
        ...


@runtime_checkable
class ReportsHealth(Protocol):
    """On a `Connection`: answers whether the broker does."""

    async def ping(self) -> Mapping[str, str]:
        """Ask the broker something cheap. Returns facts for people (version, role, latency).
        Raises as ``send``."""
        ...


@runtime_checkable
class Elects(Protocol):
    """On a `Connection`: gives a name to one holder at a time, for a while. Names are valid topics, apart from the
    topics themselves. Time is counted by the broker: no two holders' clocks have to agree. A token is good on every
    connection that its process makes to the broker.

    All three raise: `Unavailable` and `ConnectionLost` (also if the outcome is unknown), `AccessDenied`, `NotFound`
    where something is missing that may not be made, `UnsupportedError` for more `seconds` than the broker can count
    (or, in ``renew``, than the name was acquired for, if it cannot change that).
    """

    async def acquire(self, name: str, seconds: float) -> int | None:
        """Hold `name` for `seconds` from when the broker got this; returns the fencing token, which is higher than
        every one before for this name. None: somebody holds it. Does not wait for it.

        If the answer is lost the name is held by nobody who knows, until its time is over."""
        ...

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """Hold it for `seconds` from now on. False: its time was over, or somebody else holds it; then nothing is
        changed, and the holder of `token` never holds it again."""
        ...

    async def release(self, name: str, token: int) -> None:
        """Let it go, so that the next ``acquire`` has it at once. Nothing happens if `token` does not hold it."""
        ...


class Frame(msgspec.Struct, frozen=True):
    """What a body is to begin with."""

    prefix: bytes
    #: What the payload behind it is to be written by.
    schema: Schema
    #: How the schema is called where it is kept. It travels in the content type, as the parameter ``schema-id``.
    id: str


@runtime_checkable
class KeepsSchemas(Protocol):
    """On a `Connection`: schemas of bodies are kept where everybody can look them up, and bodies begin with what names
    theirs. It is for serializers that are `amb_core.serializer.Described`; other bodies travel as they are.

    Reading: a `Feed`, a replay and an inbox set ``Incoming.framed`` to what the body says of its schema, and hand
    over nothing whose schema they could not ask for: while nobody answers they keep the delivery and try again. Only
    what certainly has no schema is handed over with `Framed.problem`, and becomes a dead letter. The body
    stays as it came.
    """

    async def frame(self, topic: str, format: str, schema: Schema | None) -> Frame:
        """Have `schema` known for `topic`, and return what a body begins with, from memory if it is known already.
        Without a schema: the one that is in force for the topic, in that format.

        Raises: `IncompatibleSchema`, if the schema may not follow those before it; `NotFound`, if there is none, or it
        may not be added; `Unavailable` (the core tries again); `AuthenticationError`, `AccessDenied`."""
        ...
