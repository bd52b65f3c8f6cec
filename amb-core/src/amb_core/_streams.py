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
        try:
            await moved_on
        finally:
            if not moved_on.done():  # cancelled, and so given back: nobody may read it now
                moved_on.set_result(None)

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
            self._subscription.when_gone(self._buffer.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> MessageStream:
        return self

    async def __anext__(self) -> Message:
        """The next message; waits for it. Raises: StopAsyncIteration after `aclose`, or when the bus was left; and
        as subscribing."""
        buffer = self._buffer
        buffer.move_on()
        await self.__aenter__()
        while True:
            while buffer.ready:
                buffer.current = buffer.ready.popleft()
                if not buffer.current[1].done():
                    return buffer.current[0]
            if buffer.closed:
                raise StopAsyncIteration
            buffer.waiter = new_future()
            await buffer.waiter

    async def aclose(self) -> None:
        """End the subscription; what was not settled is given back. Idempotent."""
        self._buffer.close()
        subscription, self._subscription = self._subscription, None
        if subscription is not None and subscription.supervised is not None:
            await subscription.unsubscribe()

    def __del__(self) -> None:
        # `break` drops the iterator: what it held, and what would come yet, must not wait for the end of the bus.
        if self._subscription is not None and not self._buffer.closed and self._subscription.drop():
            self._buffer.close()
