"""`MessageBus`: the verbs. Each checks what it is given and hands on; the work is done elsewhere."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

import anyio
import msgspec

from . import _checks
from ._assemble import assemble, check_options, settings_for
from ._breaker import Breaker, CircuitBreaker
from ._capabilities import require
from ._codec import Codec
from ._config import resolve_broker, resolve_dead_letters
from ._deadletter import DeadLetter, DeadLetterBox
from ._deliver import running_consumer
from ._elections import Elections
from ._leaving import answered
from ._lifecycle import Host, Stats, Supervised
from ._message import Message, MessagePriority
from ._publish import Publisher, message_options
from ._requests import Requests, single
from ._retry import DeadLetterQueue, RetryPolicy, named_policy
from ._streams import MessageStream
from ._subscription import Settings, Subscription, SubscriptionHealth, same_handler
from .broker import Broker, Capabilities, Elects, Outgoing, Replays, ReportsHealth
from .concurrency import bounded_rest
from .errors import BusClosed, CircuitOpen, NoResponders, PartialFailure, RequestTimeout
from .serializer import Serializer
from .topics import compile_pattern, validate_pattern, validate_topic

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

F = TypeVar("F", bound=Callable[..., Any])
_UNBOUNDED = 1 << 30
_PING_TIMEOUT = 3.0
_EVENTS = ("circuit_breaker.opened", "circuit_breaker.half_open", "circuit_breaker.closed", "message.dropped",
           "subscription.lost", "subscription.restored")  # fmt: skip


class MessageOptions(TypedDict, total=False):
    """What a message may be sent with."""

    payload: Any
    data: Any
    #: String pairs of the publisher's own. A header ``priority`` sets the priority.
    headers: Mapping[str, str]
    priority: MessagePriority | str | int
    #: Seconds after which it is not delivered any more.
    ttl: float
    sender: str
    #: The ordering key.
    key: str
    trace_id: str
    correlation_id: str
    reply_to: str
    #: Free data, carried as JSON.
    metadata: Mapping[str, Any]
    #: Return only when the broker has accepted it as durably as it can.
    wait_for_confirmation: bool
    #: Seconds before which it is not delivered.
    delay: float


class PublishOptions(MessageOptions, total=False):
    """What `MessageBus.publish` takes by name: the topic too."""

    topic: str


class Health(msgspec.Struct, frozen=True):
    """`status` is "healthy" when the broker answers and every subscription consumes, "degraded" when only
    the broker answers, "unhealthy" otherwise."""

    status: str
    broker: str
    connected: bool
    subscriptions: list[SubscriptionHealth]
    details: dict[str, str]


class MessageBus:
    """Publish, subscribe, ask and answer, over whichever broker is configured.

    `broker` is a name ("redis"), a URL or a broker object; without it AMB_BROKER decides, else the memory
    broker. `adapter` is the same argument by another name. `serializer` is a name or an object; without it
    AMB_SERIALIZER, else JSON. `sender` is put on everything published. `envelope`: "cloudevents" sends messages as
    CloudEvents; whoever sends them is understood either way. Times are seconds: `connect_timeout`
    bounds connecting and subscribing, `publish_timeout` how long publishing bridges an outage or
    back-pressure, `drain_timeout` how long disconnecting waits for running handlers.

    Building a bus touches neither network nor event loop; it connects when first used, or by ``connect()``
    or ``async with``. Raises: PluginError, ConfigurationError, TypeError.
    """

    def __init__(
        self,
        broker: str | Broker | None = None,
        *,
        adapter: str | Broker | None = None,
        broker_url: str | None = None,
        serializer: str | Serializer | None = None,
        retry_policy: RetryPolicy | str | None = None,
        dead_letter_queue: DeadLetterQueue | str | None = None,
        circuit_breaker: CircuitBreaker | None = None,
        sender: str | None = None,
        envelope: Literal["amb", "cloudevents"] = "amb",
        connect_timeout: float = 10.0,
        publish_timeout: float = 30.0,
        drain_timeout: float = 30.0,
    ) -> None:
        if broker is not None and adapter is not None:
            raise TypeError("broker and adapter are two names of one argument: give one")
        self.broker: Broker = resolve_broker(broker if adapter is None else adapter, broker_url)
        self.capabilities: Capabilities = self.broker.capabilities
        self.retry_policy = named_policy(retry_policy)
        self.dead_letter_queue = resolve_dead_letters(dead_letter_queue, self.broker)
        _checks.kind("dead_letter_queue", self.dead_letter_queue, DeadLetterQueue)
        _checks.kind("circuit_breaker", circuit_breaker, CircuitBreaker)
        _checks.seconds("connect_timeout", connect_timeout, zero=False)
        _checks.seconds("publish_timeout", publish_timeout, zero=False)
        _checks.seconds("drain_timeout", drain_timeout)
        if envelope not in ("amb", "cloudevents"):
            raise ValueError(f"envelope must be 'amb' or 'cloudevents', not {envelope!r}")
        self.circuit_breaker = circuit_breaker
        self.codec = Codec(serializer)
        self.host = Host(self.broker, connect_timeout=connect_timeout, drain_timeout=drain_timeout)
        self.publisher = Publisher(self.codec.serializer, self.capabilities, self.host, sender, publish_timeout,
                                   envelope == "cloudevents")  # fmt: skip
        self.requests = Requests(self.publisher, self.capabilities, self.host, self.codec.decoder(Any))
        self.host.services.append(self.publisher.run)
        self.host.prepare = self._prepare
        self.host.last_words = self._last_words
        self.host.farewell = self._forget_all
        self._ids = count(1)
        self._declared: list[Subscription] = []
        self._live: list[Subscription] = []
        self._breakers: dict[str, Breaker] = {}

    # --- lifecycle

    @property
    def connected(self) -> bool:
        """The broker is connected now."""
        return self.host.connection is not None

    @property
    def stats(self) -> Stats:
        """Counters since the bus was built."""
        return self.host.stats

    async def connect(self) -> None:
        """Connect, and make declared subscriptions live. Idempotent. Raises: BrokerUnavailable (a
        ConnectionError) within `connect_timeout`; AuthenticationError at once."""
        await self.host.start()
        await self.host.ensure()

    async def disconnect(self) -> None:
        """Stop taking messages, let running handlers finish and settle within `drain_timeout`, give back
        what never started, disconnect. Idempotent, from any task; from inside a handler it returns at once, and the
        bus ends when its handlers have. Raises what stopped the bus before."""
        own = running_consumer()
        await self.host.stop(wait=own is None or own.host is not self.host)

    async def __aenter__(self) -> MessageBus:
        try:
            await self.connect()
        except BaseException:
            await self._leave_unfinished()
            raise
        return self

    async def _leave_unfinished(self) -> None:
        """It could not begin as it should: nobody will have the chance to disconnect it."""
        if self.host.state == "up":
            with anyio.CancelScope(shield=True):
                await self.disconnect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.disconnect()

    async def run_forever(self) -> None:
        """Connect and consume until SIGINT, SIGTERM or ``disconnect()``; then drain and return. Raises what
        stopped the bus, and as `connect`."""
        failure: BaseException | None = None
        async with anyio.create_task_group() as group:
            # Before connecting: whoever sees the bus at work may send the signal.
            await group.start(self._stop_on_signal)
            try:
                await self.connect()
                await self.host.wait_ended()
            except Exception as error:
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            await self._leave_unfinished()
            raise failure

    async def _stop_on_signal(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                await self.disconnect()

    def _prepare(self) -> None:
        self._breakers.clear()
        self._live.clear()
        # Of an event loop that was closed under the bus, something may be left.
        self.requests.reset()
        self.publisher.reset()
        for subscription in self._declared:
            self._begin(subscription)

    async def _last_words(self) -> None:
        if self.host.connection is not None:
            await self.publisher.drain()
        await self.requests.close()

    def _forget_all(self) -> None:
        """The bus has ended: declared subscriptions are not live any more, the others are no more."""
        for subscription in (*self._live, *self._declared):
            subscription.supervised = None
        self._live.clear()
        self.requests.abandon()

    # --- publishing

    async def publish(
        self, topic_or_message: str | Message | None = None, message: Any = None, **options: Unpack[PublishOptions]
    ) -> str:
        """Publish to a topic; returns the message's id.

        Returns when the broker has taken the message, with `wait_for_confirmation` as durably as it can
        (``capabilities.confirm``); never waits for handlers. Blocks for back-pressure and through an outage,
        at most `publish_timeout`. The content is the second argument, or `message`, `payload` or `data`; topic and
        content may also come as one Message. Options: see `PublishOptions`.
        Raises: ValueError (topic, headers, numbers), EncodeError, MessageTooLarge, UnsupportedError (delay),
        CircuitOpen, BackpressureError, BrokerUnavailable, PublishUnknown, BusClosed."""
        if options or type(topic_or_message) is not str or self.publisher.prepares:
            outgoing = await self._compose(topic_or_message, message, dict(options))
        else:
            outgoing = self.publisher.plain(topic_or_message, message)
        if self.circuit_breaker is not None:
            self._check_breaker(outgoing.topic)
        host = self.host
        if host.direct is None:
            await self.publisher.send(outgoing)
        else:
            sending = host.direct((outgoing,))
            try:
                blocked = sending.send(None)
            except StopIteration:
                pass
            except PartialFailure as failure:
                raise failure.errors[0] from None
            else:
                await self.publisher.patiently((outgoing,), bounded_rest(sending, blocked, self.publisher.timeout))
        host.stats.published += 1
        return outgoing.headers["amb-id"]

    async def publish_batch(self, messages: Sequence[Message]) -> list[str]:
        """Publish several messages in as few steps as the broker allows; returns their ids.

        Raises: PartialFailure mapping the index of each that failed to its error; the others went through."""
        outgoings = [await self._compose(message, None, {}) for message in messages]
        for outgoing in outgoings:
            self._check_breaker(outgoing.topic)
        failed: Mapping[int, Exception] = {}
        try:
            await self.publisher.send_all(outgoings)
        except PartialFailure as failure:
            failed = failure.errors
        self.host.stats.published += len(outgoings) - len(failed)
        if failed:
            raise PartialFailure(failed, [outgoings[index].headers["amb-id"] for index in sorted(failed)])
        return [outgoing.headers["amb-id"] for outgoing in outgoings]

    async def _compose(self, first: str | Message | None, content: Any, options: dict[str, Any]) -> Outgoing:
        unknown = options.keys() - PublishOptions.__optional_keys__
        if unknown:
            raise TypeError(
                f"publishing takes no option {unknown.pop()!r}; "
                f"it takes {', '.join(sorted(PublishOptions.__optional_keys__))}"
            )
        contents = [
            value for value in (content, options.pop("payload", None), options.pop("data", None)) if value is not None
        ]
        if len(contents) > 1:
            raise TypeError("give the content once: as second argument, message=, payload= or data=")
        topic: str | None = options.pop("topic", None)
        if isinstance(first, Message):
            if contents or topic is not None:
                raise TypeError("a Message brings its own topic and content")
            options = message_options(first, options)
            topic, contents = first.topic, [first.data]
        elif first is not None:
            if topic is not None:
                raise TypeError("give the topic once")
            topic = first
        if topic is None:
            raise TypeError("publishing needs a topic and a message: publish('topic', {'key': 'value'})")
        if options.get("delay"):
            require(self.broker, "delayed publishing", lambda c: c.delay != "none")
        options["confirm"] = options.pop("wait_for_confirmation", False)
        data = contents[0] if contents else None
        if self.publisher.prepares:
            validate_topic(topic)  # before anybody else hears of it
            data = await self.publisher.prepare(topic, data)
        return self.publisher.compose(topic, data, **options)

    def breaker(self, topic: str) -> Breaker:
        """The bus-wide circuit breaker for a topic or pattern."""
        found = self._breakers.get(topic)
        if found is None:
            assert self.circuit_breaker is not None
            found = self._breakers[topic] = Breaker(self.circuit_breaker, topic, self.host.timers, self.host.emit)
        return found

    def _check_breaker(self, topic: str) -> None:
        found = self._breakers.get(topic)
        if found is not None and found.state == "open":
            raise CircuitOpen(
                f"the circuit breaker for {topic!r} is open: its subscribers keep failing; try again later"
            )

    # --- subscribing

    async def subscribe(self, topic: str, handler: Callable[..., Any], **options: Any) -> Subscription:
        """Call `handler` for every message on a topic or pattern; returns when the subscription is live.

        The handler is async or sync (a sync one runs in a worker thread, unless ``in_thread=False``) and takes
        a Message, or, by annotation, the payload as that type. Options: `group` (= `consumer_group`): share
        the messages with its other members; `filter`; `retries`, `retry_delay` (seconds), `retry_policy`;
        `ack_mode` with `batch_size`, `batch_timeout` (seconds); `concurrency` (10): handlers at once;
        `circuit_breaker`; `ordered_by="key"`; `start`: where a new group begins; `in_thread`.
        Raises: ValueError, TypeError, UnsupportedError before any I/O; AccessDenied, NotFound,
        BrokerUnavailable (within `connect_timeout`), BusClosed."""
        subscription = self._new_subscription(topic, handler, options)
        await self.host.ensure()
        if self.host.state != "up":
            raise BusClosed(f"the bus is being disconnected: no subscription to {topic!r} can begin")
        supervised = self._begin(subscription, awaited=True)
        try:
            await self.host.wait_live(supervised)
        except BaseException:  # cancelled, most likely: nobody will have the subscription to end it
            self.host.retire_soon(supervised)
            raise
        self._live.append(subscription)
        return subscription

    def subscriber(self, topic: str, **options: Any) -> Callable[[F], F]:
        """Decorator form of `subscribe`; works before the bus is connected, and again after it reconnects. On a
        connected bus the subscription is live before the next publish."""

        def decorate(handler: F) -> F:
            subscription = self._new_subscription(topic, handler, options)
            self._declared.append(subscription)
            if self.host.state == "up":
                self._begin(subscription)
            return handler

        return decorate

    def responder(self, topic: str, group: str | None = None, **options: Any) -> Callable[[F], F]:
        """Decorator: answer requests on `topic`. The handler's value is the reply, its exception reaches the
        caller as RemoteError; or it takes a second parameter ``reply: Response``. Responders of one group
        share the requests. Options as for `subscribe`."""
        return self.subscriber(topic, group=group, responds=True, **options)

    def _new_subscription(self, topic: str, handler: Callable[..., Any], options: Mapping[str, Any]) -> Subscription:
        check_options(options)
        settings: Settings = settings_for(self, topic, handler, **options)
        return Subscription(f"{self.publisher.new_id()}.{next(self._ids)}", self, settings)

    def _begin(self, subscription: Subscription, awaited: bool = False) -> Supervised:
        supervised = self.host.supervise(assemble(self, str(subscription), subscription.settings), awaited)
        subscription.supervised = supervised
        return supervised

    async def unsubscribe(self, what: str | Subscription | Callable[..., Any]) -> None:
        """End a subscription, given itself, its id, its topic or its handler (all that match). When this
        returns the handler is not called again; calls that were running have finished (or, from inside the
        handler itself, finish later). Raises: ValueError if nothing matches."""
        found = [s for s in (*self._live, *self._declared) if _names(what, s)]
        if not found:
            raise ValueError(f"no subscription with this id, topic or handler: {what!r}")
        own = running_consumer()
        ending = [supervised for subscription in found if (supervised := self._forget(subscription)) is not None]
        for supervised in ending:
            self.host.retire_soon(supervised)
        for supervised in ending:
            if supervised.consumer is not own:
                await self.host.retire(supervised)

    def drop(self, subscription: Subscription) -> None:
        """As `unsubscribe`, without waiting. Does not block."""
        supervised = self._forget(subscription)
        if supervised is not None:
            self.host.retire_soon(supervised)

    def _forget(self, subscription: Subscription) -> Supervised | None:
        for members in (self._live, self._declared):
            if any(member is subscription for member in members):
                members.remove(subscription)
        supervised, subscription.supervised = subscription.supervised, None
        return supervised

    def stream(self, topic: str, **options: Any) -> MessageStream:
        """An async iterator over a topic's messages; see `MessageStream`. Options as for `subscribe`;
        `concurrency` (1) is how many messages are fetched ahead."""
        validate_pattern(topic)
        options.setdefault("concurrency", 1)

        async def subscribe(handler: Callable[..., Any]) -> Subscription:
            return await self.subscribe(topic, handler, **options)

        return MessageStream(subscribe)

    async def replay(
        self, topic: str, *, since: float | str | None = None, until: float | None = None
    ) -> AsyncIterator[Message]:
        """Stored messages of a topic or pattern, oldest first, up to the newest at this moment. `since`: epoch
        seconds or a `Message.position` (start after it); `until`: epoch seconds. Disturbs no group.
        Raises: UnsupportedError, ValueError, DecodeError, BrokerUnavailable."""
        validate_pattern(topic)
        require(self.broker, "replay", lambda c: c.replay != "none")
        await self.host.ensure()
        connection = await self.host.connection_up(self.host.connect_timeout)
        assert isinstance(connection, Replays), "declares replay, has no Replays"
        decode, matches = self.codec.decoder(Any), compile_pattern(topic)
        stored = connection.replay(topic, since, until)
        try:
            while (incoming := await answered(anext(stored, None))) is not None:
                if matches(incoming.topic):
                    self.host.events.read(incoming)
                    yield Message._delivered(incoming, decode(incoming), None)
        finally:
            if isinstance(stored, AsyncGenerator):  # a reader that breaks off ends it here and now
                await stored.aclose()

    # --- request and reply

    async def request(
        self,
        topic: str | Message,
        message: Any = None,
        timeout: float = 30.0,
        **options: Unpack[MessageOptions],
    ) -> Message:
        """Publish a request and return the first reply. Options: as `publish`.

        Raises: RequestTimeout (a TimeoutError) after `timeout` seconds; NoResponders at once where the broker can tell;
        RemoteError when the responder failed; and as `publish`."""
        outgoing = (
            await self._compose(topic, message, dict(options))
            if options or type(topic) is not str or self.publisher.prepares
            else self.publisher.plain(topic, message)
        )
        return single(await self._ask([outgoing], timeout, 1), [outgoing.topic], timeout)

    async def scatter(
        self,
        topic: str | Message,
        message: Any = None,
        timeout: float = 5.0,
        min_responses: int = 0,
        max_responses: int | None = None,
        **options: Unpack[MessageOptions],
    ) -> list[Message]:
        """Ask everybody on `topic`; return when `max_responses` have answered or `timeout` seconds are over.
        Failed responders count as no answer. Raises: RequestTimeout with the partial `responses` if fewer
        than `min_responses` came; ValueError; and as `publish`."""
        if max_responses is not None and max_responses < max(min_responses, 1):
            raise ValueError(f"max_responses ({max_responses}) cannot be below min_responses ({min_responses}) or 1")
        outgoing = await self._compose(topic, message, dict(options))
        try:
            answers = await self._ask([outgoing], timeout, max_responses or _UNBOUNDED)
        except NoResponders:
            answers = []
        responses = [answer for answer in answers if isinstance(answer, Message)]
        if len(responses) < min_responses:
            raise RequestTimeout(
                f"{len(responses)} of at least {min_responses} responses from {outgoing.topic!r} "
                f"came within {timeout:g} s",
                responses,
            )
        return responses

    async def request_first(
        self, topics: Sequence[str], message: Any = None, timeout: float = 30.0, **options: Unpack[MessageOptions]
    ) -> Message:
        """Ask on several topics; the first good reply wins, the others are dropped. Raises: the first
        RemoteError if all failed; otherwise as `request`."""
        if isinstance(topics, str) or not topics:
            raise TypeError("request_first takes a list of topics")
        outgoings = [await self._compose(topic, message, dict(options)) for topic in topics]
        return single(await self._ask(outgoings, timeout, len(outgoings), first_good=True), topics, timeout)

    async def _ask(self, outgoings: Sequence[Outgoing], timeout: float, wanted: int, first_good: bool = False) -> Any:
        if not timeout > 0:
            raise ValueError(f"timeout is a positive number of seconds, not {timeout!r}")
        if self.circuit_breaker is not None:
            for outgoing in outgoings:
                self._check_breaker(outgoing.topic)
        answers = await self.requests.ask(outgoings, timeout, wanted, first_good)
        self.host.stats.published += len(outgoings)
        return answers

    async def reply(self, request: Message | str, value: Any = None) -> None:
        """Answer a request, given the message or (while its handler runs) its id. Raises: ValueError if
        nobody waits for a reply; and as `publish`."""
        await self.requests.reply(request, value)

    # --- dead letters

    async def dead_letters(self, topic: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """The oldest `limit` dead letters of `topic` (default: the bus's own queue); they stay where they are.
        On a broker without replay, that there are no more is known after up to 5 seconds.
        Raises: UnsupportedError without durable groups, ValueError without a queue."""
        return await (await self._box(topic)).browse(limit)

    async def retry_dead_letters(self, ids: Collection[str] | None = None, topic: str | None = None) -> int:
        """Publish dead letters (all, or those with the ids) to their topics again, attempts starting anew, for
        the group that failed only; returns how many. Raises: as `dead_letters`."""
        return await (await self._box(topic)).redrive(ids)

    async def drop_dead_letters(self, ids: Collection[str] | None = None, topic: str | None = None) -> int:
        """Remove dead letters (all, or those with the ids); returns how many. Raises: as `dead_letters`."""
        return await (await self._box(topic)).drop(ids)

    async def _box(self, topic: str | None) -> DeadLetterBox:
        if topic is None and self.dead_letter_queue is None:
            raise ValueError("which dead letters? Give topic=, or the bus a DeadLetterQueue")
        require(self.broker, "reading dead letters", lambda c: c.durable_groups and (c.durable or c.replay != "none"))
        await self.host.ensure()
        connection = await self.host.connection_up(self.host.connect_timeout)
        topic, waits = topic or self.dead_letter_queue.topic, self.broker.capabilities.replay == "none"  # type: ignore[union-attr]
        return DeadLetterBox(self.publisher, self.codec.decoder(Any), connection, topic, waits)

    # --- leading

    async def elections(self) -> Elects:
        """The broker's means to give a name to one holder at a time; ask anew for each use, connections come and go.
        Raises: UnsupportedError, BrokerUnavailable, BusClosed."""
        require(self.broker, "elections", lambda c: c.elections)
        await self.host.ensure()
        return Elections(self.host, await self.host.connection_up(self.host.connect_timeout))

    # --- watching

    def on(self, event: str) -> Callable[[F], F]:
        """Decorator: call a function (async or not) with the topic, or subscription id, of an event:
        circuit_breaker.opened, .half_open, .closed; message.dropped; subscription.lost, .restored.
        Raises: ValueError for any other name."""
        if event not in _EVENTS:
            raise ValueError(f"no event {event!r}: use one of {', '.join(_EVENTS)}")

        def decorate(listener: F) -> F:
            self.host.listeners.setdefault(event, []).append(listener)
            return listener

        return decorate

    async def health(self) -> Health:
        """How broker and subscriptions do. Asks the broker, for at most 3 seconds. Never raises."""
        details: dict[str, str] = {}
        connection = self.host.connection
        answers = connection is not None
        if isinstance(connection, ReportsHealth):
            answers, begin = False, time.monotonic()
            try:
                with anyio.move_on_after(_PING_TIMEOUT):
                    details.update(await answered(connection.ping()))
                    answers = True
            except Exception as error:
                details["error"] = str(error)
            details["latency_ms"] = f"{(time.monotonic() - begin) * 1000:.1f}"
        subscriptions = [s.health() for s in (*self._declared, *self._live)]
        consuming = all(each.consuming for each in subscriptions)
        status = "unhealthy" if not answers else "healthy" if consuming else "degraded"
        return Health(status, type(self.broker).__name__, answers, subscriptions, details)


def _names(what: object, subscription: Subscription) -> bool:
    if isinstance(what, str):
        return str(subscription) == what or (not isinstance(what, Subscription) and subscription.pattern == what)
    return same_handler(subscription, what)


AgentMessageBus = MessageBus
