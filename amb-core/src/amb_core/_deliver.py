"""What happens to one delivery: match, filter, decode, call the handler, decide its verdict."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ._filters import MessageFilter
from ._handlers import Handler
from ._message import DEAD_TOPIC, EXPIRES, FOR_GROUP, ID, INBOX, AckMode, Message, Settled, number
from ._retry import RetryPolicy
from .broker import Incoming, Settlement, Verdict
from .concurrency import absorb_cancellation, drive, resume
from .errors import AlreadySettled, DecodeError

if TYPE_CHECKING:
    from ._consumer import Consumer
    from ._requests import Requests

log = logging.getLogger("amb")
#: The message whose handler is running; publishing takes the trace from it.
current_message: ContextVar[Message | None] = ContextVar("amb_current_message", default=None)
current_consumer: ContextVar[Consumer | None] = ContextVar("amb_current_consumer", default=None)
Decode = Callable[[Incoming], Any]


def running_consumer() -> Consumer | None:
    """The subscription whose handler is calling. What a handler began and left running is not that handler."""
    consumer, message = current_consumer.get(), current_message.get()
    delivery = None if message is None else message._delivery
    if consumer is None or not consumer.running or (isinstance(delivery, Delivery) and not delivery.running):
        return None
    return consumer


#: A Message may be filtered before its data is decoded; nobody but a headers-only filter sees this.
_UNDECODED: Any = object()
_new_message = Message.__new__


class Delivery(msgspec.Struct, eq=False):
    """One message between ``receive`` and ``settle``."""

    incoming: Incoming
    owner: Consumer
    #: The round of lease renewals in which it came.
    tick: int = 0
    verdict: str | None = None
    delay: float = 0.0
    reason: str = ""
    error: BaseException | None = None
    #: Retried inside this process and no longer known to the broker.
    local: bool = False
    #: Holds its ordering key while it waits for its next try.
    held_key: bool = False
    #: The broker could not be told just now.
    unsettled_again: bool = False
    #: The broker took it back.
    lost: bool = False
    settled: bool = False
    running: bool = False
    #: Its dead letter is stored.
    buried: bool = False

    def decide(self, verdict: str, delay: float = 0.0, reason: str = "") -> Settled:
        """See `Message.ack`. May be called from any thread."""
        if threading.get_ident() != self.owner.thread:
            return anyio.from_thread.run_sync(self.decide, verdict, delay, reason, token=self.owner.loop)
        if delay < 0:
            raise ValueError(f"a delay cannot be negative: {delay}")
        if self.verdict is None:
            self.owner.processor.check_delay(delay)
            self.settle(verdict, delay, reason)
            if not self.owner.aborted:  # else nobody is left to tell the broker
                self.owner.settler.flush_soon()
        elif self.verdict != verdict:
            raise AlreadySettled(
                f"message {self.incoming.headers.get('amb-id', '')!r} on {self.incoming.topic!r} was already settled "
                f"with {self.verdict!r}; {verdict!r} comes too late"
            )
        return Settled(self._told)

    def settle(self, verdict: str, delay: float = 0.0, reason: str = "", error: BaseException | None = None) -> None:
        """Record the verdict and queue it for the broker."""
        self.verdict, self.delay, self.reason, self.error = verdict, delay, reason, error
        self.owner.decided(self)

    async def _told(self) -> None:
        await self.owner.settler.told(self)

    def settlement(self) -> Settlement:
        """The verdict as the broker is told it."""
        if self.verdict == "ack":
            return Settlement(self.incoming.token, "ack")
        verdict: Verdict = "discard" if self.verdict == "dead" else self.verdict  # type: ignore[assignment]
        return Settlement(self.incoming.token, verdict, self.delay, self.incoming.attempt)


class Processor:
    """A subscription's settings, compiled: runs one delivery at a time per worker."""

    def __init__(
        self,
        consumer: Consumer,
        handler: Handler,
        decode: Decode,
        *,
        matches: Callable[[str], bool],
        wildcard: bool,
        filter: Callable[[Message], bool] | None,
        policy: RetryPolicy,
        ack_mode: AckMode,
        max_delay: float | None,
        requests: Requests,
    ) -> None:
        self._consumer, self._handler, self._decode = consumer, handler, decode
        self._matches, self._wildcard, self._filter, self._policy = matches, wildcard, filter, policy
        self._filter_first = isinstance(filter, MessageFilter) and filter.headers_only
        self._auto = ack_mode is not AckMode.MANUAL
        self._max_delay = max_delay
        self._call, self._bare, self._takes_reply = handler.call, handler.bare, handler.takes_reply
        self._group, self._pattern = consumer.source.group or "", consumer.source.pattern
        self._requests = requests
        #: Nothing to do after a handler returned but to acknowledge.
        self._simple = self._auto and not consumer.breakers and not consumer.source.ordered_by

    def check_delay(self, delay: float) -> None:
        """Raises: ValueError if the broker cannot delay that long."""
        if self._max_delay is not None and delay > self._max_delay and self._consumer.by_broker:
            raise ValueError(f"the broker delays at most {self._max_delay:g} s, not {delay:g} s")

    def start(self, delivery: Delivery) -> Coroutine[Any, Any, None] | None:
        """Take one delivery to its verdict, or to where its handler first waits: then returns the rest, to be
        awaited at once. Raises, here or there, only when the worker itself is cancelled."""
        message = self.prepare(delivery)
        if message is None:
            return None
        current_message.set(message)
        context = copy_context()
        delivery.running = True
        try:
            argument = message.data if self._bare else message
            coroutine = (
                self._call(argument, self._requests.response(message)) if self._takes_reply else self._call(argument)
            )
            trap = context.run(coroutine.send, None)
        except StopIteration:
            self._went_well(delivery)
        except BaseException as error:
            delivery.running = False
            self.raised((delivery,), error)
        else:
            return self._rest(delivery, coroutine, trap, context)
        return None

    async def _rest(
        self, delivery: Delivery, coroutine: Coroutine[Any, Any, Any], trap: object, context: Context
    ) -> None:
        try:
            self._consumer.suspended()
            await resume(coroutine, trap, context)
        except BaseException as error:
            delivery.running = False
            self.raised((delivery,), error)
        else:
            self._went_well(delivery)

    def _went_well(self, delivery: Delivery) -> None:
        delivery.running = False
        if self._simple and delivery.verdict is None and not delivery.local and not delivery.lost:
            delivery.verdict = "ack"
            self._consumer.settler.pending.append(delivery)
        else:
            self.returned((delivery,))

    async def run_batch(self, deliveries: Sequence[Delivery]) -> None:
        """As `run`, for a handler that takes a list."""
        pairs = [(d, message) for d in deliveries if (message := self.prepare(d)) is not None]
        if not pairs:
            return
        ready = [delivery for delivery, _ in pairs]
        for delivery in ready:
            delivery.running = True
        argument = [message.data if self._bare else message for _, message in pairs]
        current_message.set(None)  # it has no single parent; of the worker that began this one, one may be left here
        try:
            await drive(self._call(argument), copy_context(), self._consumer.suspended)
        except BaseException as error:
            self._stopped(ready)
            self.raised(ready, error)
        else:
            self._stopped(ready)
            self.returned(ready)

    @staticmethod
    def _stopped(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            delivery.running = False

    def prepare(self, delivery: Delivery) -> Message | None:
        """The message for the handler, or None if the delivery was settled without one."""
        incoming = delivery.incoming
        headers = incoming.headers
        if (incoming.topic != self._pattern or FOR_GROUP in headers) and self._is_not_ours(incoming.topic, headers):
            delivery.settle("ack")
            return None
        if EXPIRES in headers and _is_past(headers[EXPIRES]):
            self._consumer.host.stats.expired += 1
            delivery.settle("discard", reason="expired")
            return None
        message = _new_message(Message)
        message.topic, message.data = incoming.topic, _UNDECODED
        message._incoming, message._delivery, message._envelope = incoming, delivery, None
        try:
            if self._filter is not None and not self._passes(message):
                self._consumer.host.stats.filtered += 1
                delivery.settle("ack")
                return None
            if message.data is _UNDECODED:
                message.data = self._decode(incoming)
        except Exception as error:  # DecodeError, or whatever the user's filter raised
            self.failed(delivery, error)
            if self._handler.responds and INBOX in headers and isinstance(error, DecodeError):
                self._consumer.host.start_soon(self._requests.refuse, message, error)
            return None
        return message

    def _is_not_ours(self, topic: str, headers: dict[str, str]) -> bool:
        if not self._matches(topic):
            return True
        if FOR_GROUP in headers and headers[FOR_GROUP] != self._group:
            return True
        return self._wildcard and DEAD_TOPIC in headers

    def _passes(self, message: Message) -> bool:
        assert self._filter is not None and message._incoming is not None
        if not self._filter_first:
            message.data = self._decode(message._incoming)
        return bool(self._filter(message))

    def returned(self, deliveries: Sequence[Delivery]) -> None:
        """The handler returned."""
        for breaker in self._consumer.breakers:
            breaker.succeeded()
        for delivery in deliveries:
            if delivery.verdict is None:
                if self._auto:
                    delivery.settle("ack")
                else:
                    self._consumer.left_open(delivery)

    def raised(self, deliveries: Sequence[Delivery], error: BaseException) -> None:
        """The handler raised. Re-raises `error` if it is the worker's own cancellation."""
        consumer = self._consumer
        if not isinstance(error, Exception):
            if consumer.aborted or consumer.host.dying():
                for delivery in deliveries:
                    if delivery.verdict is None:
                        delivery.settle("release")
                raise error
            absorb_cancellation()
        for breaker in consumer.breakers:
            breaker.failed()
        for delivery in deliveries:
            self.failed(delivery, error)

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """Decide what becomes of a delivery that ended in `error`: retry, dead letter, or drop."""
        incoming, stats = delivery.incoming, self._consumer.host.stats
        which = f"{incoming.headers.get(ID, '')} ({incoming.topic!r}, attempt {incoming.attempt})"
        what = f"{self._handler.name} failed on {which}"
        stats.failed += 1
        if delivery.verdict is not None:
            log.warning("%s after it was settled with %r", what, delivery.verdict, exc_info=error)
            return
        delay = self._delay_after(incoming.attempt, error)
        if delay is None:
            delivery.settle("dead", reason=_reason(error, incoming.attempt), error=error)
        else:
            log.warning("%s: %s: %s; next try in %.3g s", what, type(error).__name__, error, delay)
            delivery.settle("retry", min(delay, self._max_delay or delay), error=error)

    def _delay_after(self, attempt: int, error: BaseException) -> float | None:
        try:
            return self._policy.delay_after(attempt, error)
        except Exception:  # a policy may be a plugin's
            log.exception("the retry policy of %s failed: the message is not tried again", self._handler.name)
            return None


def _is_past(text: str) -> bool:
    moment = number(text)
    return moment is not None and moment < time.time()


def _reason(error: BaseException, attempt: int) -> str:
    if isinstance(error, DecodeError):
        return "undecodable"
    return "not retryable" if attempt == 1 else "retries exhausted"
