"""Reading a topic as an async iterator, with the settling of a handler."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType

from ._message import Message
from ._subscription import Subscription
from .concurrency import Future, new_future

Handler = Callable[[Message], Awaitable[None]]


class _Buffer:
    """Between the subscription's handler and the reader. The handler runs until the reader has moved on, so
    that the lease is renewed and the concurrency counts for as long as the reader holds the message."""

    def __init__(self) -> None:
        self.ready: deque[tuple[Message, Future[None]]] = deque()
        self.current: tuple[Message, Future[None]] | None = None
        self.waiter: Future[None] | None = None
        self.closed = False

    async def put(self, message: Message) -> None:
        if self.closed:
            _give_back(message)
            return
        moved_on: Future[None] = new_future()
        self.ready.append((message, moved_on))
        self.wake()
        await moved_on

    def move_on(self) -> None:
        current, self.current = self.current, None
        if current is not None and not current[1].done():
            current[1].set_result(None)

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def close(self) -> None:
        self.closed = True
        if self.current is not None:
            self.ready.appendleft(self.current)
        for message, moved_on in self.ready:
            if not moved_on.done():
                _give_back(message)
                moved_on.set_result(None)
        self.ready.clear()
        self.wake()


def _give_back(message: Message) -> None:
    delivery = message._delivery
    if delivery is not None and delivery.verdict is None:
        delivery.decide("release")


class MessageStream:
    """Messages of a topic, one at a time: ``async for message in bus.stream("topic")``.

    Subscribes when first used. With AckMode.AUTO a message is acknowledged when the next one is asked for;
    one that was not followed by another (``break``, an exception) is given back. Leave with
    ``async with bus.stream(...) as stream``, or ``aclose()``, so that the subscription ends there.
    """

    def __init__(self, subscribe: Callable[[Handler], Awaitable[Subscription]]) -> None:
        self._subscribe = subscribe
        self._subscription: Subscription | None = None
        self._buffer = _Buffer()

    async def __aenter__(self) -> MessageStream:
        if self._subscription is None and not self._buffer.closed:
            self._subscription = await self._subscribe(self._buffer.put)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> MessageStream:
        return self

    async def __anext__(self) -> Message:
        """The next message; waits for it. Raises: StopAsyncIteration after `aclose`, and as subscribing."""
        buffer = self._buffer
        buffer.move_on()
        await self.__aenter__()
        while not buffer.ready:
            if buffer.closed:
                raise StopAsyncIteration
            buffer.waiter = new_future()
            await buffer.waiter
        buffer.current = buffer.ready.popleft()
        return buffer.current[0]

    async def aclose(self) -> None:
        """End the subscription; what was not settled is given back. Idempotent."""
        self._buffer.close()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    def __del__(self) -> None:
        # `break` drops the iterator: what it held must not wait for the end of the bus's grace time.
        if self._subscription is not None and not self._buffer.closed:
            self._buffer.close()
