"""What happens to a published message: stamp it, encode it, hand it to the connection."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from itertools import count
from math import isinf
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from . import _checks
from ._deliver import current_message
from ._events import SPECVERSION
from ._framing import Framing
from ._leaving import as_failure
from ._message import (
    CONTENT_TYPE,
    CORRELATION,
    EXPIRES,
    ID,
    METADATA,
    NORMAL,
    PREFIX,
    PRIORITY,
    REPLY_TO,
    SENDER,
    TIME,
    TRACE_ID,
    TRACEPARENT,
    TRACESTATE,
    TTL,
    Message,
    MessagePriority,
    trace_of,
)  # fmt: skip
from .broker import Capabilities, Connection, Outgoing
from .concurrency import Future, Wakeup, bounded, new_future
from .errors import (
    AmbError,
    BackpressureError,
    ConnectionLost,
    MessageTooLarge,
    PartialFailure,
    PublishUnknown,
    Unavailable,
)
from .serializer import Described, Serializer
from .topics import validate_topic

if TYPE_CHECKING:
    from ._lifecycle import Host

#: The most messages handed to a connection in one batch.
BATCH = 500
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
#: A message, who waits for it, and until when it may be tried.
_Queued: TypeAlias = tuple[Outgoing, Future[None], float]


class Publisher:
    """Stamps and sends. One per bus."""

    def __init__(
        self,
        serializer: Serializer,
        capabilities: Capabilities,
        host: Host,
        sender: str | None,
        timeout: float,
        makes_events: bool = False,
    ) -> None:
        self._framing = Framing(serializer, serializer, host, timeout) if isinstance(serializer, Described) else None
        self._encode = serializer.encode if self._framing is None else self._framing.encode
        #: What is published goes through `prepare` first. A broker's connections are all of one kind: once is enough.
        self.prepares = self._framing is not None
        self._capabilities, self._host, self._sender, self.timeout = capabilities, host, sender, timeout
        _check_texts({"sender": sender})
        self._prefix = os.urandom(6).hex() + "-"
        self._count = count(1)
        self._direct = capabilities.single_process
        self.events, self._makes_events = host.events, makes_events
        #: Something is left to do with a message that is composed.
        self._unfinished = makes_events or capabilities.max_message is not None or capabilities.max_headers is not None
        self._queue: list[_Queued] = []
        self._sending: list[_Queued] = []
        self._wakeup, self._drained = Wakeup(), Wakeup()

    def new_id(self) -> str:
        """A message id: random per bus, then counted."""
        return f"{self._prefix}{next(self._count)}"

    async def prepare(self, topic: str, data: object) -> object:
        """What to compose the message from, instead of `data`. See `Framing.prepare`."""
        if self._framing is None:
            return data
        prepared = await self._framing.prepare(topic, data)
        self.prepares = self._framing.asks
        return prepared

    def plain(self, topic: str, data: object, parent: Mapping[str, str] | None = None) -> Outgoing:
        """`compose` without options: what most messages are, at half the cost. The trace of `parent`, the headers
        of the message that is answered, goes on; without, that of the message being handled."""
        if parent is None:
            validate_topic(topic)
            parent = _handled()
        body, content_type = self._encode(data)
        wire = {ID: f"{self._prefix}{next(self._count)}", TIME: str(time.time_ns()), CONTENT_TYPE: content_type}
        if self._sender is not None:
            wire[SENDER] = self._sender
        if parent is not None and (TRACEPARENT in parent or TRACE_ID in parent):
            _continue_trace(wire, parent)
        outgoing = Outgoing(topic, body, wire)
        if self._unfinished:
            self._finish(outgoing)
        return outgoing

    def compose(
        self,
        topic: str,
        data: object,
        *,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        priority: MessagePriority | str | int | None = None,
        ttl: float | None = None,
        sender: str | None = None,
        key: str | None = None,
        trace_id: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        delay: float | None = None,
        timestamp: float | None = None,
        confirm: bool = False,
    ) -> Outgoing:
        """The message as it travels. Raises: ValueError, TypeError, EncodeError, MessageTooLarge."""
        validate_topic(topic)
        body, content_type = self._encode(data)
        now = time.time()
        # In two parts: the whole in nanoseconds is more than a float holds exactly.
        stamp = time.time_ns() if timestamp is None else int(timestamp) * 10**9 + round(timestamp % 1 * 1e9)
        wire = {ID: id or self.new_id(), TIME: str(stamp), CONTENT_TYPE: content_type}
        if headers:
            _checks.kind("headers", headers, Mapping)
            check_headers(headers)
            wire.update(headers)
            if priority is None and "priority" in headers:
                priority = headers["priority"]
        lane = NORMAL if priority is None else MessagePriority.parse(priority)
        if lane is not NORMAL:
            wire[PRIORITY] = lane.name.lower()
        if metadata:
            _checks.kind("metadata", metadata, Mapping)
            wire[METADATA] = _metadata(metadata)
        if id or sender or key or correlation_id or reply_to or trace_id:
            given = {SENDER: sender, CORRELATION: correlation_id, REPLY_TO: reply_to, TRACE_ID: trace_id}
            _check_texts({"id": id, "key": key, **given})
            wire.update((name, value) for name, value in given.items() if value)
        if self._sender is not None and not sender:
            wire[SENDER] = self._sender
        parent = _handled()
        if parent is not None and (TRACEPARENT in parent or TRACE_ID in parent):
            _continue_trace(wire, parent)
        outgoing = Outgoing(topic, body, wire, key, int(lane), None, None, confirm)
        if ttl is not None:
            outgoing.expires = now + _checks.seconds("ttl", ttl)
            wire[TTL], wire[EXPIRES] = f"{ttl:.15g}", f"{outgoing.expires:.6f}"
        if delay:
            outgoing.not_before = now + _checks.seconds("delay", delay)
            longest = self._capabilities.max_delay
            if isinf(delay):
                raise ValueError("a delay must end: publish nothing instead")
            if longest is not None and delay > longest:
                raise ValueError(f"the broker delays at most {longest:g} s, not {delay:g} s: keep the message yourself")
        self._finish(outgoing)
        return outgoing

    def _finish(self, outgoing: Outgoing) -> None:
        if self._makes_events:
            self.events.write(outgoing)
        else:
            self.spell(outgoing.headers)
        limits = self._capabilities
        if limits.max_message is not None and len(outgoing.body) > limits.max_message:
            raise MessageTooLarge(
                f"the message for {outgoing.topic!r} has {len(outgoing.body)} bytes, the broker takes "
                f"{limits.max_message}: publish a reference to the data instead"
            )
        if limits.max_headers is not None and len(outgoing.headers) > limits.max_headers:
            raise MessageTooLarge(
                f"the message for {outgoing.topic!r} has {len(outgoing.headers)} headers, the broker takes "
                f"{limits.max_headers}"
            )

    def spell(self, headers: dict[str, str]) -> None:
        """See `Events.spell`."""
        if SPECVERSION in headers:
            self.events.spell(headers)

    async def send(self, outgoing: Outgoing) -> None:
        """Hand one message to the broker. Blocks until it is accepted, for back-pressure, and through an
        outage, at most the publish timeout. Raises: BrokerUnavailable, PublishUnknown, BackpressureError."""
        host = self._host
        if not host.ready:
            await host.ensure()
        if host.observer is not None:
            with host.observer.sending((outgoing,)):
                await (self._hand_over((outgoing,)) if self._direct else self._put(outgoing))
            return
        if not self._direct:
            await self._put(outgoing)
            return
        connection = host.connection or await host.connection_up(self.timeout)
        await self.patiently((outgoing,), bounded(connection.send((outgoing,)), self.timeout))

    async def patiently(self, batch: Sequence[Outgoing], sending: Coroutine[Any, Any, None]) -> None:
        """Await a bounded send within this process. Raises as `send`."""
        try:
            await sending
        except PartialFailure as failure:
            if len(batch) == 1:
                raise failure.errors[0] from None
            raise
        except AmbError:  # some are also a TimeoutError
            raise
        except TimeoutError:
            error = BackpressureError if len(batch) == 1 else PublishUnknown  # some of a batch may have gone through
            raise error(
                f"{len(batch)} message(s) for {batch[0].topic!r} had no room within {self.timeout:g} s: consume "
                "faster, or give the broker a longer queue or the bus a longer publish_timeout"
            ) from None

    async def send_all(self, batch: Sequence[Outgoing]) -> None:
        """As `send`, for several. Raises: PartialFailure with the index of each that failed."""
        if not self._host.ready:
            await self._host.ensure()
        if self._host.observer is None or not batch:
            await self._hand_over(batch)
        else:
            with self._host.observer.sending(batch):
                await self._hand_over(batch)

    async def _hand_over(self, batch: Sequence[Outgoing]) -> None:
        if self._direct:
            connection = self._host.connection or await self._host.connection_up(self.timeout)
            await self.patiently(batch, bounded(connection.send(batch), self.timeout))
            return
        errors: dict[int, Exception] = {}
        futures = [self._put(outgoing) for outgoing in batch]
        try:
            for index, future in enumerate(futures):
                try:
                    await future
                except Exception as error:
                    errors[index] = error
        except BaseException:  # cancelled: what is not on its way stays here, and nobody waits for the rest
            for future in futures:
                if not future.done():
                    future.set_result(None)
            raise
        if errors:
            raise PartialFailure(errors)

    def _put(self, outgoing: Outgoing) -> Future[None]:
        future: Future[None] = new_future()
        self._queue.append((outgoing, future, time.monotonic() + self.timeout))
        self._wakeup.set()
        return future

    async def run(self) -> None:
        """Send what is queued, in batches that form while the batch before is on its way. Until cancelled."""
        try:
            await self._run()
        finally:
            self._give_up()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            if not self._queue:
                self._drained.set()
                await self._wakeup.wait()
                continue
            self._sending, self._queue = self._queue[:BATCH], self._queue[BATCH:]
            again = await self._send_batch(self._sending)
            self._sending, self._queue = [], again + self._queue
            if again:
                await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE) if again else _FIRST_PAUSE

    def reset(self) -> None:
        """Begin anew: whoever still waited is gone."""
        self._sending, self._queue = [], []

    async def drain(self) -> None:
        """Return when nothing is waiting to be sent."""
        while self._queue or self._sending:
            await self._drained.wait()

    def _give_up(self) -> None:
        """The bus is closed: whoever still waits for a message to be accepted must hear of it."""
        left, self._sending, self._queue = self._sending + self._queue, [], []
        for outgoing, future, _ in left:
            if not future.done():
                future.set_exception(
                    PublishUnknown(
                        f"the bus was disconnected before the broker had accepted {outgoing.headers[ID]} for "
                        f"{outgoing.topic!r}: it may or may not be delivered"
                    )
                )

    async def _send_batch(self, batch: list[_Queued]) -> list[_Queued]:
        """Returns those to be tried again."""
        batch = [entry for entry in batch if not entry[1].done()]
        if not batch:
            return []
        errors: Mapping[int, Exception] = {}
        deadline = min(entry[2] for entry in batch)
        connection: Connection | None = None
        try:
            connection = self._host.connection
            if connection is None:
                connection = await self._host.connection_up(max(0.0, deadline - time.monotonic()))
            await bounded(connection.send([entry[0] for entry in batch]), self.timeout)
        except PartialFailure as failure:
            errors = failure.errors
        except BaseException as caught:
            error = as_failure(caught, PublishUnknown)
            if not isinstance(error, Exception):
                raise
            self._host.suspect(error, connection)
            errors = dict.fromkeys(range(len(batch)), self._unanswered(error))
        return [entry for index, entry in enumerate(batch) if not _resolve(entry[1], errors.get(index), entry[2])]

    def _unanswered(self, error: Exception) -> Exception:
        if isinstance(error, AmbError) or not isinstance(error, TimeoutError):
            return error
        unknown = PublishUnknown(
            f"the broker did not answer within {self.timeout:g} s: the message may or may not have been accepted"
        )
        unknown.__cause__ = error
        return unknown


def _resolve(future: Future[None], error: Exception | None, deadline: float) -> bool:
    """Tell the publisher how it went; False: not yet, it is worth another try."""
    if future.done():  # its task was cancelled
        return True
    if error is None:
        future.set_result(None)
    elif isinstance(error, Unavailable | ConnectionLost) and time.monotonic() < deadline:
        return False
    else:
        future.set_exception(error)
    return True


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises: TypeError for what is no string, ValueError for AMB's own names and what UTF-8 cannot carry."""
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"header {name!r} must map a str to a str, not to {type(value).__name__}; "
                "use metadata= for other values"
            )
        lowered = name.lower()
        if not name or lowered.startswith(PREFIX) or lowered == CONTENT_TYPE:
            raise ValueError(f"header {name!r} is reserved for AMB")
        if not (name.isascii() and value.isascii()):
            _encodable(f"header {name!a}", name + value)


def _check_texts(fields: Mapping[str, str | None]) -> None:
    for name, value in fields.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name.removeprefix(PREFIX)} must be a str, not {type(value).__name__}")
        if value and not value.isascii():
            _encodable(name.removeprefix(PREFIX), value)


def _encodable(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has a lone surrogate, which UTF-8 cannot carry: {text!a}") from None


def _metadata(metadata: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"metadata travels as JSON: {error}") from error
    if "\\ud" in text:  # an escape that stands for half of a character, or for a half alone
        _encodable("metadata", json.dumps(metadata, ensure_ascii=False))
    return text


def _handled() -> Mapping[str, str] | None:
    """The headers of the message whose handler is running."""
    message = current_message.get()
    return None if message is None or message._incoming is None else message._incoming.headers


def _continue_trace(wire: dict[str, str], parent: Mapping[str, str]) -> None:
    valid = trace_of(parent.get(TRACEPARENT)) is not None
    for name in (TRACE_ID, TRACEPARENT, TRACESTATE) if valid else (TRACE_ID,):
        if name in parent and name not in wire:
            wire[name] = parent[name]


def message_options(message: Message, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a Message says of itself, under what its publisher says beside it."""
    # NORMAL is also what a Message has that says nothing: then its header ``priority`` counts.
    silent = message.priority is MessagePriority.NORMAL
    own = {
        "id": message.id or None, "headers": message.headers, "priority": None if silent else message.priority,
        "ttl": message.ttl, "sender": message.sender, "key": message.key, "trace_id": message.trace_id,
        "correlation_id": message.correlation_id, "reply_to": message.reply_to, "metadata": message.metadata,
        "timestamp": message.timestamp or None,
    }  # fmt: skip
    return own | {name: value for name, value in options.items() if value is not None}
