"""The child's side of a measurement, and the cases that everybody runs. Standard library only: it runs everywhere."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

#: What is published, everywhere: about 100 bytes of JSON.
DATA: dict[str, Any] = {
    "agent": "planner",
    "step": 17,
    "task": "Summarise the three papers and say what they disagree on.",
    "ok": True,
}
TOPIC = "agents.planner.steps"
IN_FLIGHT = 64
#: Publishers at once, and handlers at once, over a network.
AT_ONCE = 100
IDLE_SECONDS = 2.0

Figures = dict[str, float]
Case = Callable[[int], Coroutine[Any, Any, Figures]]
Handle = Callable[[Any], Awaitable[None]]
Send = Callable[[dict[str, Any]], Awaitable[Any]]
#: Opens a bus where `Handle` gets what is sent with the `Send` that it yields.
Listening = Callable[[Handle], AbstractAsyncContextManager[Send]]
#: Opens a bus where so many messages wait, and a group's only member handles them.
Waiting = Callable[[int, Handle], AbstractAsyncContextManager[None]]
#: Opens a bus where somebody answers (or where nobody listens).
Opened = Callable[[], AbstractAsyncContextManager[Send]]

#: Elapsed time; with ``--cpu`` the processor time of this process, which others on the machine change less.
_clock = time.perf_counter


def elapsed() -> float:
    """Now, by the clock that was asked for."""
    return _clock()


def serve(cases: dict[str, Case]) -> None:
    """Measure what each line of the input names, until it ends. Prints a line of JSON for each."""
    global _clock
    if "--cpu" in sys.argv:
        _clock = time.process_time
    logging.disable(logging.ERROR)
    print(json.dumps(sorted(cases)), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(_best(cases[order["case"]], order["count"], order["times"])), flush=True)


def _best(case: Case, count: int, times: int) -> Figures:
    """The lowest of several runs: what else the machine does only ever adds."""
    best: Figures = {}
    for _ in range(times):
        figures = asyncio.run(case(count))
        best = {name: min(value, best.get(name, value)) for name, value in figures.items()}
        gc.collect()
    return best


@asynccontextmanager
async def beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the coroutines as tasks until the block ends."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


def publishing(silent: Opened) -> Case:
    """Seconds for a publish where nobody listens."""

    async def case(count: int) -> Figures:
        async with silent() as send:
            begin = _clock()
            for _ in range(count):
                await send(DATA)
            return {"publish": (_clock() - begin) / count}

    return case


def one_at_a_time(listening: Listening) -> Case:
    """Seconds from publishing to the start of the handler, and of the whole cycle until the publisher goes on."""

    async def case(count: int) -> Figures:
        sent = spent = 0.0
        handled = asyncio.Event()

        async def handle(_: Any) -> None:
            nonlocal spent
            spent += _clock() - sent
            handled.set()

        async with listening(handle) as send:
            begin = _clock()
            for _ in range(count):
                handled.clear()
                sent = _clock()
                await send(DATA)
                await handled.wait()
            return {"e2e": spent / count, "cycle": (_clock() - begin) / count}

    return case


def pumping(listening: Listening) -> Case:
    """Seconds for a message, when one task publishes as fast as it may and one subscription handles."""

    async def case(count: int) -> Figures:
        left = count
        done = asyncio.Event()

        async def handle(_: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        async with listening(handle) as send:
            begin = _clock()
            for _ in range(count):
                await send(DATA)
            await done.wait()
            return {"pump": (_clock() - begin) / count}

    return case


def publishing_at_once(silent: Opened) -> Case:
    """Seconds for a publish where nobody listens, a hundred tasks publishing one after the other."""

    async def case(count: int) -> Figures:
        async with silent() as send:
            begin = _clock()
            sent = await _send_at_once(send, count)
            return {"publish": (_clock() - begin) / sent}

    return case


def pumping_at_once(listening: Listening, name: str) -> Case:
    """Seconds for a message, when a hundred tasks publish and one subscription handles."""

    async def case(count: int) -> Figures:
        left, done = max(1, count // AT_ONCE) * AT_ONCE, asyncio.Event()

        async def handle(_: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        async with listening(handle) as send:
            begin = _clock()
            sent = await _send_at_once(send, count)
            await done.wait()
            return {name: (_clock() - begin) / sent}

    return case


async def _send_at_once(send: Send, count: int) -> int:
    """Returns how many were sent: about `count`, as many by each."""
    each = max(1, count // AT_ONCE)

    async def publisher() -> None:
        for _ in range(each):
            await send(DATA)

    await asyncio.gather(*(publisher() for _ in range(AT_ONCE)))
    return each * AT_ONCE


def consuming(waiting: Waiting, how: str = "") -> Case:
    """Seconds, and seconds of processor time, for a message that waits. Begins after a fifth of them: the first batch
    has been read before the first handler starts."""

    async def case(count: int) -> Figures:
        begin = cpu = 0.0
        left, rest, done, figures = count, count - count // 5, asyncio.Event(), Figures()

        async def handle(_: Any) -> None:
            nonlocal left, begin, cpu
            if left == rest:
                begin, cpu = _clock(), time.process_time()
            left -= 1
            if not left:
                figures[f"consume{how}"] = (_clock() - begin) / rest
                figures[f"consume{how} cpu"] = (time.process_time() - cpu) / rest
                done.set()

        async with waiting(count, handle):
            await done.wait()
        return figures

    return case


def requesting(answering: Opened, in_flight: int, name: str) -> Case:
    """Seconds for a request and its reply, `in_flight` at once."""

    async def case(count: int) -> Figures:
        each = max(1, count // in_flight)
        async with answering() as request:

            async def ask() -> None:
                for _ in range(each):
                    await request(DATA)

            begin = _clock()
            await asyncio.gather(*(ask() for _ in range(in_flight)))
            return {name: (_clock() - begin) / (each * in_flight)}

    return case


def common(listening: Listening, answering: Opened, silent: Opened | None) -> dict[str, Case]:
    """The cases that every contestant takes part in."""
    cases = {
        "one at a time": one_at_a_time(listening),
        "pump": pumping(listening),
        "request": requesting(answering, 1, "request"),
        "requests": requesting(answering, IN_FLIGHT, "requests"),
    }
    return cases if silent is None else {"publish": publishing(silent), **cases}


async def idle_cpu() -> float:
    """The part of a core that this process uses while nothing happens."""
    await asyncio.sleep(0.3)  # noqa: TID251
    cpu = time.process_time()
    await asyncio.sleep(IDLE_SECONDS)  # noqa: TID251
    return (time.process_time() - cpu) / IDLE_SECONDS
