"""Long polls that outlive the wait for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from amb_core.errors import AmbError

from ._client import Aws, Received

__all__ = ["Lane", "Outcome", "Poll", "Polls"]

#: A poll under way.
Poll: TypeAlias = "asyncio.Future[tuple[None]]"
#: What a poll brought.
Outcome: TypeAlias = "Sequence[Received] | AmbError"
Deliver: TypeAlias = Callable[["Lane", Outcome], Awaitable[None]]


class Lane:
    """One queue that a feed reads."""

    def __init__(self, url: str, priority: int) -> None:
        self.url, self.priority = url, priority
        self.poll: Poll | None = None
        #: A message is in the queue that is to end the poll.
        self.waking = False


class Polls:
    """The polls of a connection.

    Cancelling a poll would hide what SQS had already taken for it, so a poll goes on when nobody waits any more, and
    what it brings then is given back. It is a future that the connection owns and ends."""

    def __init__(self, aws: Aws, patience: float) -> None:
        self._aws, self._patience = aws, patience
        self._open: set[Poll] = set()
        self._timers: set[Poll] = set()

    def start(self, lane: Lane, limit: int, wait: int, lease: int, deliver: Deliver) -> Poll:
        """Ask the lane's queue; `deliver` gets the answer."""

        async def poll() -> None:
            outcome: Outcome
            try:
                outcome = await self._aws.receive(lane.url, limit, wait, lease)
            except AmbError as error:
                outcome = error
            await deliver(lane, outcome)

        return self.own(poll())

    def own(self, coroutine: Coroutine[Any, Any, None], kept: bool = True) -> Poll:
        """Let it run while the connection lives. `kept`: what it brings has to be seen to."""
        future: Poll = asyncio.gather(coroutine)
        chosen = self._open if kept else self._timers
        chosen.add(future)
        future.add_done_callback(chosen.discard)
        return future

    async def stop(self, futures: Sequence[Poll]) -> None:
        """End these polls: their queue is gone, or nobody else would get what they bring."""
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)

    async def close(self) -> None:
        """Let the polls that are open end, within reason."""
        deadline = time.monotonic() + self._patience
        while self._open and (left := deadline - time.monotonic()) > 0:  # one may begin another
            await asyncio.wait(self._open, timeout=left)
        await self.stop([*self._open, *self._timers])
