"""The memory broker when it is full, when many compete, and when tasks are cancelled at bad moments."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Literal

import anyio
import anyio.abc
import pytest
from amb_core.broker import Connection, ExtendsLease, Feed, Outgoing, Settlement, Source, Verdict
from amb_core.errors import BackpressureError, ConnectionLost, PartialFailure
from amb_core.memory import InMemoryBroker

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.param == "trio":
        return "trio", {}
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@asynccontextmanager
async def publishing() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group that is cancelled when the test is over, and fails it when it hangs.

    Not a fixture: a scope that is cancelled around a fixture's ``yield`` stops the runner of the tests instead.
    """
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            yield group
            group.cancel_scope.cancel()


#: Room for four, and no slowing down before that.
SMALL = InMemoryBroker(max_queue_size=4, backpressure_delay=0)


def source(pattern: str, group: str | None = "g", **fields: Any) -> Source:
    return Source(id=f"{group}/{pattern}", pattern=pattern, group=group, **fields)


async def send(bus: Connection, name: str, topic: str = "a", **fields: Any) -> None:
    await bus.send([Outgoing(topic, name.encode(), {}, **fields)])


async def take(feed: Feed, limit: int = 100) -> list[str]:
    """Receive what is there and acknowledge it."""
    deliveries = await feed.receive(limit, wait=False)
    await feed.settle([Settlement(each.token, "ack") for each in deliveries])
    return [each.body.decode() for each in deliveries]


class Publishers:
    """Publishes that may have to wait, each in a task of its own."""

    def __init__(self, bus: Connection, tasks: anyio.abc.TaskGroup) -> None:
        self.bus, self.tasks = bus, tasks
        self.done: list[str] = []
        self.failed: dict[str, Exception] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def start(self, *names: str, topic: str = "a") -> None:
        for name in names:
            self.tasks.start_soon(self._publish, name, topic)
            await anyio.wait_all_tasks_blocked()

    async def _publish(self, name: str, topic: str) -> None:
        with anyio.CancelScope() as scope:
            self.scopes[name] = scope
            try:
                await send(self.bus, name, topic)
            except Exception as error:
                self.failed[name] = error
            else:
                self.done.append(name)


# --- slowing down


def at_once(sending: Coroutine[Any, Any, None]) -> None:
    """It ends without waiting for anything."""
    with pytest.raises(StopIteration):
        sending.send(None)


async def test_each_publish_above_the_threshold_is_slowed_down() -> None:
    async with (
        InMemoryBroker(max_queue_size=10, backpressure_threshold=0.5, backpressure_delay=0.05).connect() as bus,
        bus.open(source("a")) as feed,
    ):
        for number in range(5):
            at_once(send(bus, str(number)))
        began = time.monotonic()
        for number in range(5, 8):
            await send(bus, str(number))
        assert 0.14 < time.monotonic() - began < 2
        assert await take(feed) == [str(number) for number in range(8)]
        at_once(send(bus, "relaxed again"))


async def test_a_slow_topic_does_not_slow_another() -> None:
    async with (
        publishing() as tasks,
        SMALL.connect() as bus,
        bus.open(source("slow")),
        bus.open(source("fast")) as fast,
    ):
        publishers = Publishers(bus, tasks)
        await publishers.start(*"12345", topic="slow")
        await publishers.start(*"abcd", topic="fast")
        assert publishers.done == list("1234abcd")
        assert await take(fast) == list("abcd")


# --- full


async def test_publishers_wait_for_room_and_enter_in_the_order_they_came() -> None:
    async with publishing() as tasks, SMALL.connect() as bus, bus.open(source("a")) as feed:
        publishers = Publishers(bus, tasks)
        await publishers.start(*"abcdefghij")
        assert publishers.done == list("abcd")
        assert await take(feed, 1) == ["a"]
        await publishers.start("late")
        assert publishers.done == list("abcde")
        received = ["a"]
        while len(received) < 11:
            received += await take(feed, 3)
            await anyio.wait_all_tasks_blocked()
        assert received == [*"abcdefghij", "late"] == publishers.done


async def test_a_full_queue_with_overflow_raise_refuses_and_names_itself() -> None:
    async with InMemoryBroker(max_queue_size=2, overflow="raise").connect() as bus:
        async with bus.open(source("a.*", "workers")) as feed:
            await send(bus, "1", "a.b")
            await send(bus, "2", "a.b")
            with pytest.raises(BackpressureError, match=r"group 'workers' on 'a\.\*'.*'a\.b'"):
                await send(bus, "3", "a.b")
            assert await take(feed) == ["1", "2"]
            await send(bus, "4", "a.b")
            assert await take(feed) == ["4"]


async def test_a_message_for_several_queues_enters_all_or_none() -> None:
    async with (
        publishing() as tasks,
        SMALL.connect() as bus,
        bus.open(source("a")) as full,
        bus.open(source("#")) as wide,
    ):
        publishers = Publishers(bus, tasks)
        await publishers.start(*"1234")
        assert await take(wide) == list("1234")
        await publishers.start("5")
        assert publishers.done == list("1234") and await take(wide) == []
        assert await take(full) == list("1234")
        await anyio.wait_all_tasks_blocked()
        assert await take(full) == await take(wide) == ["5"]


async def test_publishers_to_crossing_queues_do_not_wait_for_each_other_for_ever() -> None:
    async with publishing() as tasks, SMALL.connect() as bus, AsyncExitStack() as stack:
        left = await stack.enter_async_context(bus.open(source("x.left")))
        right = await stack.enter_async_context(bus.open(source("x.right")))
        publishers = Publishers(bus, tasks)
        await publishers.start(*"1234", topic="x.left")
        await publishers.start(*"5678", topic="x.right")
        await publishers.start("wide one", topic="x.left")
        both = await stack.enter_async_context(bus.open(source("x.*", None)))
        await publishers.start("wide two", topic="x.right")
        await publishers.start("wide three", topic="x.left")
        got = Counter[str]()
        for _ in range(6):
            for feed in (both, right, left):
                got.update(await take(feed, 2))
            await anyio.wait_all_tasks_blocked()
        assert len(publishers.done) == 11
        assert got == Counter({**dict.fromkeys("12345678", 1), "wide one": 2, "wide two": 2, "wide three": 2})


async def test_a_publisher_who_was_slowed_down_and_comes_first_in_line_then_finds_the_room_that_is_there() -> None:
    slowing = InMemoryBroker(max_queue_size=4, backpressure_delay=0.5, backpressure_threshold=0.5)
    async with (
        publishing() as tasks,
        slowing.connect() as bus,
        bus.open(source("x.*")) as left,
        bus.open(source("x.right")) as right,
    ):
        for name in "12":
            await send(bus, name, "x.right")
        assert await take(left) == ["1", "2"]
        for name in "34":
            await send(bus, name, "x.right")
        publishers = Publishers(bus, tasks)  # from here on the right is full, the left has room for two
        await publishers.start("first", topic="x.left")  # is slowed down, and lines up after:
        await publishers.start("second", topic="x.right")
        assert publishers.done == []
        while not publishers.done:
            await anyio.sleep(0.01)
        assert publishers.done == ["first"]
        assert await take(left) == ["3", "4", "first"]
        assert await take(right) == list("1234")


async def test_a_cancelled_publisher_leaves_no_trace_and_lets_the_next_in() -> None:
    async with publishing() as tasks, SMALL.connect() as bus, bus.open(source("a")) as feed:
        publishers = Publishers(bus, tasks)
        await publishers.start(*"abcdefg")
        publishers.scopes["f"].cancel()
        await anyio.wait_all_tasks_blocked()
        assert await take(feed, 1) == ["a"]
        publishers.scopes["e"].cancel()  # it has just been told that there is room
        await anyio.wait_all_tasks_blocked()
        received = ["a"]
        for _ in range(4):
            received += await take(feed)
            await anyio.wait_all_tasks_blocked()
        assert received == publishers.done
        assert received in (list("abcdg"), list("abcdeg"))


async def test_publishers_go_on_when_the_full_queue_is_gone() -> None:
    async with publishing() as tasks, SMALL.connect() as bus:
        publishers = Publishers(bus, tasks)
        async with bus.open(source("a", None)):
            await publishers.start(*"abcdef")
            assert publishers.done == list("abcd")
        await anyio.wait_all_tasks_blocked()
        assert publishers.done == list("abcdef")


async def test_waiting_publishers_hear_that_their_connection_closed() -> None:
    async with publishing() as tasks, SMALL.connect() as other, other.open(source("a")):
        async with SMALL.connect() as bus:
            publishers = Publishers(bus, tasks)
            await publishers.start(*"abcde")
        await anyio.wait_all_tasks_blocked()
        assert publishers.done == list("abcd") and isinstance(publishers.failed["e"], ConnectionLost)


async def test_what_comes_back_finds_room_in_a_full_queue() -> None:
    async with InMemoryBroker(max_queue_size=2, overflow="raise").connect() as bus, bus.open(source("a")) as feed:
        await send(bus, "1")
        first = await feed.receive(1)
        await send(bus, "2")
        await send(bus, "3")
        await feed.settle([Settlement(first[0].token, "release")])
        with pytest.raises(BackpressureError):
            await send(bus, "4")
        assert await take(feed) == ["1", "2", "3"]


async def test_delayed_and_withheld_messages_take_room() -> None:
    async with InMemoryBroker(max_queue_size=2, overflow="raise").connect() as bus:
        async with bus.open(source("a")), bus.open(source("b", ordered_by="key")) as ordered:
            await send(bus, "1", not_before=time.time() + 60)
            await send(bus, "2", not_before=time.time() + 60)
            with pytest.raises(BackpressureError):
                await send(bus, "3")
            await send(bus, "1", "b", key="k")
            await ordered.receive(1)
            await send(bus, "2", "b", key="k")
            await send(bus, "3", "b", key="k")
            with pytest.raises(BackpressureError):
                await send(bus, "4", "b", key="k")


# --- cancelled at bad moments


async def test_a_cancelled_receive_loses_nothing_and_passes_its_call_on() -> None:
    async with (
        publishing() as tasks,
        SMALL.connect() as bus,
        bus.open(source("a")) as first,
        bus.open(source("a")) as second,
    ):
        got: list[tuple[str, list[str]]] = []
        scopes: dict[str, anyio.CancelScope] = {}

        async def receive(name: str, feed: Feed) -> None:
            with anyio.CancelScope() as scope:
                scopes[name] = scope
                got.append((name, [each.body.decode() for each in await feed.receive(10)]))

        for name, feed in (("first", first), ("second", second)):
            tasks.start_soon(receive, name, feed)
            await anyio.wait_all_tasks_blocked()
        await send(bus, "x")  # calls the first
        scopes["first"].cancel()  # before it runs
        await anyio.wait_all_tasks_blocked()
        scopes["second"].cancel()
        await anyio.wait_all_tasks_blocked()
        assert got in ([("first", ["x"])], [("second", ["x"])])


async def test_receiving_with_a_deadline_at_the_moment_of_arrival_loses_nothing() -> None:
    async with publishing() as tasks, InMemoryBroker().connect() as bus, bus.open(source("a")) as feed:
        received: list[str] = []

        async def publish() -> None:
            for number in range(200):
                await send(bus, str(number))
                await anyio.sleep(0.002)

        tasks.start_soon(publish)
        while len(received) < 200:
            with anyio.move_on_after(0.002):
                deliveries = await feed.receive(1)
                received += [each.body.decode() for each in deliveries]
                await feed.settle([Settlement(each.token, "ack") for each in deliveries])
        assert received == [str(number) for number in range(200)]


# --- everything at once


class Worker:
    """Receives and does anything a consumer may do with a delivery, by chance."""

    def __init__(self, bus: Connection, spec: Source, chance: random.Random, acknowledged: Callable[[str], None]):
        self.bus, self.spec, self.chance, self.acknowledged = bus, spec, chance, acknowledged
        self.lost_leases = 0

    async def run(self) -> None:
        while True:
            async with self.bus.open(self.spec) as feed:
                for _ in range(self.chance.randrange(5, 40)):
                    with anyio.move_on_after(self.chance.choice([0.0, 0.001, 0.01, 1.0])):
                        await self._round(feed)

    async def _round(self, feed: Feed) -> None:
        deliveries = list(await feed.receive(self.chance.randrange(1, 8)))
        self.chance.shuffle(deliveries)
        for each in deliveries:
            if self.chance.random() < 0.1:
                await anyio.sleep(self.chance.random() * 0.03)
            if self.chance.random() < 0.2:
                assert isinstance(feed, ExtendsLease)
                await self._attempt(feed.extend([each.token]))
            verdict: Verdict | None = self.chance.choice(["ack", "ack", "ack", "retry", "release", None])
            if verdict is not None:
                delay = self.chance.choice([0.0, 0.0, 0.01]) if verdict == "retry" else 0.0
                outcome = Settlement(each.token, verdict, delay, each.attempt)
                if await self._attempt(feed.settle([outcome])) and verdict == "ack":
                    self.acknowledged(each.body.decode())

    async def _attempt(self, verb: Awaitable[None]) -> bool:
        try:
            await verb
        except PartialFailure:
            self.lost_leases += 1
            return False
        return True


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("ordered", [None, "key"])
async def test_whatever_happens_each_message_is_acknowledged_once_in_each_group(
    seed: int, ordered: Literal["key"] | None
) -> None:
    chance, total = random.Random(seed), 160
    accepted = {group: Counter[str]() for group in ("g", "h")}
    async with InMemoryBroker(lease=0.01, max_queue_size=30, backpressure_delay=0).connect() as bus:
        async with bus.open(source("a.#", "g", ordered_by=ordered)), bus.open(source("a.b", "h", ordered_by=ordered)):
            pass  # both groups exist from now on
        specs = {"g": source("a.#", "g", ordered_by=ordered), "h": source("a.b", "h", ordered_by=ordered)}
        done = anyio.Event()

        def acknowledged(group: str, body: str) -> None:
            accepted[group][body] += 1
            if min(map(len, accepted.values())) == total:
                done.set()

        workers = [
            Worker(bus, specs[group], random.Random(f"{seed}{group}{n}"), partial(acknowledged, group))
            for group in "gh"
            for n in range(3)
        ]
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for worker in workers:
                    tasks.start_soon(worker.run)

                async def publish(numbers: range) -> None:
                    for number in numbers:
                        due = time.time() + 0.01 if chance.random() < 0.1 else None
                        key, priority = chance.choice("klm"), chance.randrange(6)
                        await send(bus, str(number), "a.b", key=key, priority=priority, not_before=due)

                for start in range(0, total, 40):
                    tasks.start_soon(publish, range(start, start + 40))
                await done.wait()
                tasks.cancel_scope.cancel()
        assert accepted["g"] == accepted["h"] == Counter(map(str, range(total)))
        assert sum(worker.lost_leases for worker in workers) > 0


async def test_waiting_costs_no_processor_time() -> None:
    async with InMemoryBroker().connect() as bus, AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        for number in range(100):
            for group in ("g", "g", None):
                feed = await stack.enter_async_context(bus.open(source(f"t.{number}", group)))
                tasks.start_soon(feed.receive, 1)
        await anyio.wait_all_tasks_blocked()
        spent = time.process_time()
        await anyio.sleep(0.5)
        assert time.process_time() - spent < 0.02
        tasks.cancel_scope.cancel()


async def test_five_thousand_publishers_at_once_all_get_through() -> None:
    async with (
        publishing() as tasks,
        InMemoryBroker(max_queue_size=100, backpressure_delay=0.001).connect() as bus,
        bus.open(source("a")) as feed,
    ):
        for number in range(5000):
            tasks.start_soon(send, bus, str(number))
        received: list[str] = []
        while len(received) < 5000:
            deliveries = await feed.receive(50)
            await feed.settle([Settlement(each.token, "ack") for each in deliveries])
            received += [each.body.decode() for each in deliveries]
        assert sorted(map(int, received)) == list(range(5000))
