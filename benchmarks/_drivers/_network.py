"""The cases of a broker behind a network: publish, consume and request, one and a hundred at once, small and large.

Everybody's publish is confirmed by the server before it counts, everybody's consumed message is acknowledged after its
handler, and everybody's handlers run side by side where there are a hundred. Where a server leases what it hands out,
nobody holds more than his handlers work on: a lease that runs while its message waits is one that runs out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count as counter
from typing import Any, Protocol
from uuid import uuid4

from benchmarks._drivers._child import AT_ONCE, DATA, Case, Figures, Handle, Send, elapsed

#: What is published: about 100 bytes of JSON, and about 10,000.
SIZES: dict[str, dict[str, Any]] = {
    "100 B": DATA,
    "10 kB": {**DATA, "sources": [f"{DATA['task']} Page {page}." for page in range(140)]},
}
_number = counter()


class Client(Protocol):
    """What a contestant can do. Every case has a topic of its own."""

    def publishing(self, topic: str) -> AbstractAsyncContextManager[Send]:
        """A group's messages wait; a call of what it yields is over when the server has stored the message for it."""

    def consuming(self, topic: str, waiting: int, data: Any, handle: Handle, at_once: int) -> _Nothing:
        """So many messages wait, then a group's only member handles them, `at_once` side by side."""

    def answering(self, topic: str, at_once: int) -> AbstractAsyncContextManager[Send]:
        """Somebody sends back what he is sent; a call of what it yields gives the reply."""


_Nothing = AbstractAsyncContextManager[None]


def cases(client: Client, without: Sequence[str] = ()) -> dict[str, Case]:
    """By name, such as ``publish 100 10 kB``; none whose first word is in `without`."""
    kinds: dict[str, Callable[[Client, str, int, Any], Case]] = {
        "publish": _publish,
        "consume": _consume,
        "request": _request,
    }
    return {
        name: kinds[kind](client, name, at_once, data)
        for kind in kinds
        if kind not in without
        for size, data in SIZES.items()
        for at_once in (1, AT_ONCE)
        for name in [f"{kind} {at_once} {size}"]
    }


def _topic() -> str:
    return f"bench.t{next(_number)}x{uuid4().hex[:8]}"


async def _shared(call: Send, data: Any, count: int, at_once: int) -> float:
    """Seconds for a call, so many tasks calling one after the other."""
    each = max(1, count // at_once)

    async def caller() -> None:
        for _ in range(each):
            await call(data)

    await call(data)  # links are opened by the first
    begin = elapsed()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    return (elapsed() - begin) / (each * at_once)


def _publish(client: Client, name: str, at_once: int, data: Any) -> Case:
    async def case(count: int) -> Figures:
        async with client.publishing(_topic()) as send:
            return {name: await _shared(send, data, count, at_once)}

    return case


def _request(client: Client, name: str, at_once: int, data: Any) -> Case:
    async def case(count: int) -> Figures:
        async with client.answering(_topic(), at_once) as request:
            return {name: await _shared(request, data, count, at_once)}

    return case


def _consume(client: Client, name: str, at_once: int, data: Any) -> Case:
    """Begins after a fifth of them: the first batch has been read before the first handler starts."""

    async def case(count: int) -> Figures:
        begin = cpu = 0.0
        left, rest, done, figures = count, count - count // 5, asyncio.Event(), Figures()

        async def handle(_: Any) -> None:
            nonlocal left, begin, cpu
            if left == rest:
                begin, cpu = elapsed(), time.process_time()
            left -= 1
            if not left:
                figures[name] = (elapsed() - begin) / rest
                figures[f"{name} cpu"] = (time.process_time() - cpu) / rest
                done.set()

        async with client.consuming(_topic(), count, data, handle, at_once):
            await done.wait()
        return figures

    return case


async def run(handle: Handle, data: Sequence[Any], at_once: int) -> None:
    """Handle a batch: one after the other, or, where more may run, side by side."""
    if at_once == 1:
        for one in data:
            await handle(one)
        return
    async with asyncio.TaskGroup() as group:
        for one in data:
            group.create_task(handle(one))  # type: ignore[arg-type]  # handlers are coroutine functions


class Batches:
    """Sends what several tasks send at once in batches, and tells each when its own is there."""

    def __init__(self, deliver: Callable[[list[Any]], Awaitable[Any]], most: int) -> None:
        self._deliver, self._most = deliver, most
        self._waiting: list[tuple[Any, asyncio.Future[None]]] = []

    async def send(self, data: Any) -> None:
        sent = asyncio.get_running_loop().create_future()
        self._waiting.append((data, sent))
        await asyncio.sleep(0)  # noqa: TID251  # until everybody else has said what he sends
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        if batch:
            await self._deliver([data for data, _ in batch])
            for _, each in batch:
                each.set_result(None)
        await sent
