"""Turns what `subscribe` was given into settings, and settings into a consumer: once per subscription."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from . import _checks
from ._advice import did_you_mean
from ._breaker import Breaker, CircuitBreaker
from ._capabilities import require
from ._consumer import Consumer
from ._deadletter import Undertaker
from ._deliver import Processor
from ._handlers import compile_handler
from ._held import spare_places
from ._lease import Renewal
from ._message import AckMode, Message
from ._observe import observed
from ._retry import RetryPolicy, effective_policy, named_policy
from ._subscription import Settings
from .broker import Broker, Source
from .topics import compile_pattern, is_pattern, validate_pattern

if TYPE_CHECKING:
    from ._bus import MessageBus


def settings_for(
    bus: MessageBus,
    pattern: str,
    handler: Callable[..., Any],
    *,
    group: str | None = None,
    consumer_group: str | None = None,
    filter: Callable[[Message], bool] | None = None,
    retries: int | None = None,
    retry_delay: float | None = None,
    retry_policy: RetryPolicy | str | None = None,
    ack_mode: AckMode | str = AckMode.AUTO,
    batch_size: int = 100,
    batch_timeout: float = 1.0,
    concurrency: int = 10,
    circuit_breaker: CircuitBreaker | None = None,
    ordered_by: Literal["key"] | None = None,
    start: Literal["latest", "earliest"] = "latest",
    in_thread: bool | None = None,
    responds: bool = False,
) -> Settings:
    """Check the arguments. Raises: TypeError, ValueError, UnsupportedError."""
    validate_pattern(pattern)
    if group is not None and consumer_group is not None and group != consumer_group:
        raise TypeError("group and consumer_group are two names of one argument: give one")
    mode = _ack_mode(ack_mode)
    for text in (group, consumer_group):
        _checks.kind("group", text, str)
        if text == "":
            raise ValueError("group must have a name; leave it out to get every message")
    group = group or consumer_group or getattr(bus.broker, "consumer_group", None)
    _checks.count("concurrency", concurrency, 1)
    _checks.count("batch_size", batch_size, 1)
    _checks.seconds("batch_timeout", batch_timeout)
    _checks.kind("circuit_breaker", circuit_breaker, CircuitBreaker)
    _checks.kind("in_thread", in_thread, bool)
    if filter is not None and not callable(filter):
        raise TypeError(f"filter must be a MessageFilter or a function of the message, not {type(filter).__name__}")
    _check_broker(bus.broker, group, ordered_by, start)
    own = named_policy(retry_policy)
    policy = effective_policy(retries, retry_delay, own, bus.retry_policy, bus.dead_letter_queue)
    batch = (batch_size, batch_timeout) if mode is AckMode.BATCH else None
    if batch is not None and responds:
        raise ValueError(f"a responder on {pattern!r} answers one request at a time: its ack_mode cannot be batch")
    compile_handler(handler, batch=batch is not None, in_thread=in_thread)
    return Settings(
        pattern,
        handler,
        group,
        filter,
        policy,
        mode,
        batch,
        concurrency,
        circuit_breaker,
        ordered_by,
        start,
        in_thread,
        responds,
    )


def _ack_mode(mode: AckMode | str) -> AckMode:
    try:
        return AckMode(mode)
    except ValueError:
        raise ValueError(f"ack_mode must be one of {', '.join(AckMode)}, not {mode!r}") from None


def _check_broker(broker: Broker, group: str | None, ordered_by: str | None, start: str) -> None:
    if group is not None:
        require(broker, "consumer groups", lambda c: c.groups)
    if ordered_by is not None:
        if ordered_by != "key":
            raise ValueError(f"ordered_by must be 'key', not {ordered_by!r}")
        require(broker, "order per key", lambda c: c.order != "none")
    if start not in ("latest", "earliest"):
        raise ValueError(f"start must be 'latest' or 'earliest', not {start!r}")
    if start == "earliest":
        if group is None:
            raise ValueError("start='earliest' is where a new group begins: give group=, or use bus.replay()")
        require(broker, "starting a group at the beginning", lambda c: c.replay != "none")


def check_options(options: Iterable[str]) -> None:
    """Return if `settings_for` knows them all. Raises: TypeError that names the one that was meant."""
    takes = settings_for.__kwdefaults__ or {}
    known = sorted(takes.keys() - {"responds"})
    for name in options:
        if name not in takes:
            raise TypeError(
                f"subscribing takes no option {name!r}{did_you_mean(name, known)}; it takes {', '.join(known)}"
            )


def assemble(bus: MessageBus, id: str, settings: Settings) -> Consumer:
    """The consumer for `settings`, wired to the bus."""
    host, capabilities = bus.host, bus.capabilities
    capacity = settings.concurrency * (settings.batch[0] if settings.batch else 1)
    source = Source(
        id=id,
        pattern=settings.pattern,
        group=settings.group,
        start=settings.start,
        ordered_by=settings.ordered_by,
        # In ordered mode the messages behind a busy key hold places too.
        max_in_flight=capacity * 4
        if settings.ordered_by
        else capacity + spare_places(settings.group, settings.ordered_by, capabilities),
    )
    consumer = Consumer(source, capabilities, host, settings.concurrency, settings.batch)
    _add_breakers(bus, consumer, settings)  # first: the processor asks whether there are any
    handler = compile_handler(
        settings.handler,
        batch=settings.batch is not None,
        in_thread=settings.in_thread,
    )
    if settings.responds:
        handler = bus.requests.answering(handler)
    if host.observer is not None:
        handler = observed(handler, host.observer, source)
    consumer.processor = Processor(
        consumer,
        handler,
        bus.codec.decoder(handler.payload_type),
        matches=compile_pattern(settings.pattern),
        wildcard=is_pattern(settings.pattern),
        filter=settings.filter,
        policy=settings.policy,
        ack_mode=settings.ack_mode,
        max_delay=capabilities.max_delay,
        requests=bus.requests,
    )
    consumer.settler.undertaker = Undertaker(bus.publisher, bus.dead_letter_queue, handler.name, capabilities)
    if consumer.leased and capabilities.lease is not None and capabilities.extend_lease:
        consumer.renewal = Renewal(consumer, capabilities.lease)
    return consumer


def _add_breakers(bus: MessageBus, consumer: Consumer, settings: Settings) -> None:
    if settings.breaker is not None:
        consumer.breakers.append(Breaker(settings.breaker, settings.pattern, bus.host.timers, bus.host.emit))
    elif bus.circuit_breaker is not None:
        consumer.breakers.append(bus.breaker(settings.pattern))
    for breaker in consumer.breakers:
        breaker.members.append(consumer)
