"""Request and reply: private inbox, matching by an id of AMB's own, scatter, first answer wins."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ._deliver import current_message
from ._leaving import answered, left_in_time
from ._message import CORRELATION, ERROR, EXPIRES, ID, INBOX, REQUEST, Message
from ._texts import describe
from .broker import INBOX_PREFIX, Capabilities, Connection, Feed, Incoming, NativeRequests, Outgoing, Settlement, Source
from .concurrency import Future, new_future
from .errors import (
    AccessDenied,
    AmbError,
    BusClosed,
    EncodeError,
    MessageTooLarge,
    NoResponders,
    RemoteError,
    RequestTimeout,
    Unavailable,
)

if TYPE_CHECKING:
    from ._handlers import Handler
    from ._lifecycle import Host
    from ._publish import Publisher

log = logging.getLogger("amb")
_INBOX_PAUSE = 0.2
_INBOX_BATCH = 1000
_LONGEST_ERROR = 4000


class Asked:
    """A request that waits for `wanted` answers, or for the first that is no error."""

    __slots__ = ("_first_good", "_refused", "_wanted", "abandoned", "answers", "done", "topic")

    def __init__(self, topic: str, wanted: int, first_good: bool) -> None:
        self.topic, self._wanted, self._first_good = topic, wanted, first_good
        self.done: Future[None] = new_future()
        self.answers: list[Message | RemoteError] = []
        self._refused = 0
        self.abandoned = False

    def add(self, answer: Message | RemoteError) -> None:
        """An answer came."""
        self.answers.append(answer)
        good = self._first_good and isinstance(answer, Message)
        if good or len(self.answers) + self._refused >= self._wanted:
            self.finish()

    def refused(self) -> None:
        """One of the topics has no responder."""
        self._refused += 1
        if self.answers and len(self.answers) + self._refused >= self._wanted:
            self.finish()

    def abandon(self) -> None:
        """No more answers can come."""
        self.abandoned = True
        self.finish()

    def finish(self) -> None:
        """Wait no longer."""
        if not self.done.done():
            self.done.set_result(None)


class Requests:
    """Both sides of request/reply for one bus."""

    def __init__(
        self, publisher: Publisher, capabilities: Capabilities, host: Host, decode: Callable[[Incoming], Any]
    ) -> None:
        self._publisher, self._capabilities, self._host, self._decode = publisher, capabilities, host, decode
        self._address = INBOX_PREFIX + os.urandom(8).hex()
        self._ids = count(1)
        self._asked: dict[str, Asked] = {}
        self._mandatory = capabilities.no_responders
        self._source = Source(id=self._address, pattern=self._address, max_in_flight=_INBOX_BATCH)
        #: Replies can arrive: a request sent before that might be answered into the void.
        self._open = False
        self._opened: anyio.Event
        self._inbox_scope: anyio.CancelScope | None = None
        #: Why the broker does not allow an inbox: trying again without being asked would not help.
        self._denied: AccessDenied | None = None

    # --- asking

    async def ask(
        self, outgoings: Sequence[Outgoing], timeout: float, wanted: int, first_good: bool = False
    ) -> list[Message | RemoteError]:
        """Publish the request (one copy a topic) and collect answers until `wanted` have come or `timeout`
        seconds are over. Raises: NoResponders when no topic has any, and as publishing."""
        host = self._host
        if not host.ready:
            await host.ensure()
        if not self._open:
            await self._open_inbox(timeout)
        request_id = format(next(self._ids), "x")
        asked = self._asked[request_id] = Asked(outgoings[0].topic, wanted, first_good)
        timer = host.timers.call_later(timeout, asked.finish)
        expires = time.time() + timeout
        try:
            until = f"{expires:.6f}"
            for outgoing in outgoings:
                headers = outgoing.headers
                headers[INBOX], headers[REQUEST], headers[EXPIRES] = self._address, request_id, until
                outgoing.mandatory, outgoing.expires = self._mandatory, expires
            if host.direct is not None:  # sending does not wait for a network
                await self._send(outgoings, asked)
            else:
                with anyio.move_on_after(timeout):
                    await self._send(outgoings, asked)
            await asked.done
        finally:
            timer.cancel()
            self._asked.pop(request_id, None)
        if asked.abandoned and not asked.answers:
            raise BusClosed(f"the bus was disconnected before a reply from {asked.topic!r} came")
        return asked.answers

    async def _send(self, outgoings: Sequence[Outgoing], asked: Asked) -> None:
        if len(outgoings) == 1:
            await self._publisher.send(outgoings[0])
            return
        refused = 0
        for outgoing in outgoings:
            try:
                await self._publisher.send(outgoing)
            except NoResponders:
                refused += 1
                if refused == len(outgoings):
                    raise
                asked.refused()

    async def _open_inbox(self, timeout: float) -> None:
        if self._inbox_scope is None:
            self._inbox_scope, self._opened, self._closed = anyio.CancelScope(), anyio.Event(), anyio.Event()
            self._host.start_soon(self._serve_inbox, self._inbox_scope)
        with anyio.move_on_after(timeout):
            self._denied = None
            while not self._open and self._inbox_scope is not None and self._denied is None:
                await self._opened.wait()
        if self._denied is not None and not self._open:
            raise self._denied
        if self._inbox_scope is None:
            raise BusClosed("the bus was disconnected before the inbox for replies was open: nothing was sent")
        if not self._open:
            raise Unavailable(f"the broker did not open the inbox for replies within {timeout:g} s: nothing was sent")

    async def _serve_inbox(self, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                while True:
                    await self._one_inbox(await self._host.connection_up(float("inf")))
        finally:
            self._inbox_scope = None
            self._opened.set()
            self._closed.set()

    async def _one_inbox(self, connection: Connection) -> None:
        """Returns when `connection`, or what replies come through, is lost."""
        try:
            with self._host.while_connected(connection):
                await self._hold_inbox(connection)
        except Exception as error:
            log.warning("the reply inbox: %s; opening it again", error, exc_info=not isinstance(error, AmbError))
            self._host.suspect(error, connection)
            if isinstance(error, AccessDenied):
                self._denied = error
                self._wake()
            await anyio.sleep(_INBOX_PAUSE)

    async def _hold_inbox(self, connection: Connection) -> None:
        try:
            if isinstance(connection, NativeRequests):
                async with left_in_time(connection.inbox(self._address, self.deliver)):
                    self._is_open()
                    await anyio.sleep_forever()
            else:
                async with left_in_time(connection.open(self._source)) as feed:
                    self._is_open()
                    await self._pump(feed)
        finally:
            self._open = False

    def _is_open(self) -> None:
        self._open = True
        self._wake()

    def _wake(self) -> None:
        opened, self._opened = self._opened, anyio.Event()
        opened.set()

    async def _pump(self, feed: Feed) -> None:
        while True:
            batch = await answered(feed.receive(_INBOX_BATCH))
            for incoming in batch:
                self.deliver(incoming)
            if batch:
                await answered(feed.settle([Settlement(incoming.token, "ack") for incoming in batch]))

    async def close(self) -> None:
        """Stop taking answers: who still waits gets what has come, or BusClosed. The next request opens the
        inbox again."""
        self.abandon()
        if self._inbox_scope is not None:
            self._inbox_scope.cancel()
            await self._closed.wait()

    def reset(self) -> None:
        """Begin anew: whoever still waited is gone."""
        self._asked.clear()
        self._open, self._inbox_scope = False, None

    def abandon(self) -> None:
        """No more answers can come, to anybody."""
        for asked in self._asked.values():
            asked.abandon()

    def deliver(self, incoming: Incoming) -> None:
        """An answer came: hand it to whoever waits. Late ones are counted and dropped."""
        asked = self._asked.get(incoming.headers.get(REQUEST, ""))
        if asked is None or asked.done.done():
            self._host.stats.late_replies += 1
            return
        if self._host.observer is not None:
            self._host.observer.received(self._source, (incoming,), time.time_ns())
        asked.add(self._answer(incoming, asked.topic))

    def _answer(self, incoming: Incoming, topic: str) -> Message | RemoteError:
        try:
            data = self._decode(incoming)
        except AmbError as error:
            return RemoteError(f"the reply cannot be decoded: {error}", type(error).__name__, topic)
        kind = incoming.headers.get(ERROR)
        if kind is not None:
            return RemoteError(str(data), kind, topic)
        answer = Message._delivered(incoming, data, None)
        answer.topic = topic
        return answer

    # --- answering

    async def reply(self, request: Message | str, value: object) -> None:
        """Send `value` to whoever sent `request`. Raises: ValueError if it is no request, or an id that is not open."""
        await self._publish_reply(self.find(request), value, None)

    async def reply_error(self, request: Message, text: str, kind: str) -> None:
        """Let the caller's request raise RemoteError."""
        await self._publish_reply(request, text, kind)

    def find(self, request: Message | str) -> Message:
        """The open request that `request` names."""
        if isinstance(request, Message):
            return request
        for supervised in self._host.supervised:
            for delivery in supervised.consumer.open.values():
                if delivery.incoming.headers.get(ID) == request and INBOX in delivery.incoming.headers:
                    return Message._delivered(delivery.incoming, None, delivery)
        raise ValueError(
            f"no open request with the id {request!r}: reply before it is settled, or pass the message itself"
        )

    async def _publish_reply(self, request: Message, value: object, error: str | None) -> None:
        headers = request._incoming.headers if request._incoming is not None else {}
        inbox, request_id = headers.get(INBOX), headers.get(REQUEST)
        if inbox is None or request_id is None or not inbox.startswith(INBOX_PREFIX):
            raise ValueError(f"message {request.id!r} on {request.topic!r} is no request: nobody waits for a reply")
        if self._publisher.prepares:
            value = await self._publisher.prepare(inbox, value)
        outgoing = self._publisher.plain(inbox, value, headers)
        outgoing.headers[REQUEST] = request_id
        if CORRELATION in headers:
            outgoing.headers[CORRELATION] = headers[CORRELATION]
        if error is not None:
            outgoing.headers[ERROR] = error
        await self._publisher.send(outgoing)

    def response(self, request: Message) -> Response:
        """The reply handle that is injected into a responder."""
        return Response(request, self)

    def answering(self, handler: Handler) -> Handler:
        """`handler` made a responder: its value is the reply, its exception the caller's RemoteError."""
        inner = handler.call

        async def call(*arguments: Any) -> None:
            message = current_message.get()
            assert message is not None
            incoming = message._incoming
            if incoming is None or INBOX not in incoming.headers:
                await inner(*arguments)
                return
            try:
                value = await inner(*arguments)
            except (Exception, SystemExit) as error:
                await self._tell(message, error)
                raise
            sent = handler.takes_reply and arguments[1].sent
            if not sent and (value is not None or not handler.takes_reply):
                try:
                    await self.reply(message, value)
                except (EncodeError, MessageTooLarge) as error:
                    await self._tell(message, error)
                    raise

        return msgspec.structs.replace(handler, call=call, responds=True)

    async def _tell(self, request: Message, error: BaseException) -> None:
        await self.reply_error(request, _sendable(error), type(error).__name__)
        request.ack()  # the caller knows: no retry, no dead letter

    async def refuse(self, request: Message, error: Exception) -> None:
        """Tell the caller that its request could not be read, which is a dead letter all the same. Never raises."""
        try:
            await self.reply_error(request, _sendable(error), type(error).__name__)
        except Exception as failure:  # whatever is wrong with the address that a stranger wrote on it
            log.warning("the caller of %r was not told of its mistake: %s", request.topic, failure)


def _sendable(error: BaseException) -> str:
    """What it says, so that this at least can be sent."""
    return describe(error)[:_LONGEST_ERROR].encode(errors="replace").decode()


class Response:
    """The reply to one request, for a responder that wants to say when and what it answers."""

    def __init__(self, request: Message, requests: Requests) -> None:
        self._request, self._requests = request, requests
        self.sent = False

    async def send(self, value: object) -> None:
        """Answer with `value`; blocks as publishing does. Raises: ValueError if nobody waits for a reply."""
        self.sent = True
        await self._requests.reply(self._request, value)

    async def error(self, text: str) -> None:
        """Let the caller's request raise RemoteError with `text`. Otherwise as `send`."""
        self.sent = True
        await self._requests.reply_error(self._request, text, "Error")


def single(answers: Sequence[Message | RemoteError], topics: Sequence[str], timeout: float) -> Message:
    """The first good answer, else the first error, else a time-out."""
    for answer in answers:
        if isinstance(answer, Message):
            return answer
    for answer in answers:
        if isinstance(answer, RemoteError):
            raise answer
    names = ", ".join(repr(topic) for topic in topics)
    raise RequestTimeout(f"no reply from {names} within {timeout:g} s: is a responder subscribed and fast enough?")
