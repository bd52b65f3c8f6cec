"""What others do wrong, backends and foreign producers among them, costs the bus nothing but that."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from amb_core import AccessDenied, DeadLetterQueue, InMemoryBroker, Message, MessageBus
from amb_core.broker import Connection, Incoming, Settlement, Source, Token
from amb_core.errors import LeaseLost, PartialFailure, Unavailable

from tests.core._help import Collector, eventually
from tests.core._scripted import ScriptedBroker, ScriptedConnection, ScriptedFeed, incoming

pytestmark = pytest.mark.anyio
DLQ = DeadLetterQueue("dead", max_retries=0)


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


@asynccontextmanager
async def connected(broker: ScriptedBroker, **options: Any) -> AsyncIterator[MessageBus]:
    given: dict[str, Any] = {"connect_timeout": 1, "publish_timeout": 2, "drain_timeout": 2, "dead_letter_queue": DLQ}
    async with MessageBus(broker, **(given | options)) as bus:
        yield bus


FORGED = [
    {"amb-inbox": "orders", "amb-request": "1"},
    {"amb-inbox": "_amb.inbox.1"},
    {"amb-inbox": "_amb.inbox.not valid", "amb-request": "1"},
    {"amb-inbox": "_amb.inbox.1", "amb-request": "1", "traceparent": "00-\ud800"},
]


@pytest.mark.parametrize("readable", [True, False], ids=["readable", "unreadable"])
@pytest.mark.parametrize("headers", FORGED, ids=["public", "without id", "malformed", "half a character"])
async def test_a_forged_request_costs_itself_only(
    broker: ScriptedBroker, headers: dict[str, str], readable: bool
) -> None:
    answered: list[Any] = []

    async def answer(number: int) -> int:
        answered.append(number)
        return number

    async with connected(broker) as bus:
        await bus.subscribe("t", answer, group="g", responds=True)
        feed = await broker.feed()
        feed.hand(1 if readable else "no number", headers=headers)
        await eventually(lambda: len(feed.settled) == 1, "the verdict on the forged one")
        feed.hand(2)
        await eventually(lambda: len(feed.settled) == 2, "the verdict on the next one")
        assert bus.connected
    assert answered[-1] == 2 and not any(topic == "orders" for topic in broker.topics())


async def test_a_backend_that_names_items_that_were_not_there_does_not_end_the_bus(broker: ScriptedBroker) -> None:
    async def nonsense(feed: ScriptedFeed, outcomes: Sequence[Settlement]) -> None:
        if not feed.settled and not nonsense_said:
            nonsense_said.append(True)
            raise PartialFailure({7: LeaseLost("which one?")})

    nonsense_said: list[bool] = []
    broker.on_settle = nonsense
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g")
        feed = await broker.feed()
        feed.hand(1)
        await eventually(lambda: nonsense_said, "the first verdict")
        feed.hand(2)
        await collector.wait(2)
        assert bus.connected


async def test_a_renewal_of_what_was_not_there_does_not_end_the_bus() -> None:
    broker, go_on, calls = ScriptedBroker(lease=0.15, extend_lease=True), anyio.Event(), list[int]()

    async def nonsense(feed: ScriptedFeed, tokens: Sequence[Token]) -> None:
        calls.append(len(tokens))
        raise PartialFailure({7: LeaseLost("which one?")})

    async def slow(message: Message) -> None:
        await go_on.wait()

    broker.on_extend = nonsense
    async with connected(broker) as bus:
        await bus.subscribe("t", slow, group="g")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await eventually(lambda: calls, "a renewal")
        await anyio.sleep(0)
        go_on.set()
        await eventually(lambda: feed.verdicts() == [(token, "ack")], "the acknowledgement")


async def test_a_bus_that_could_not_be_entered_is_left(broker: ScriptedBroker) -> None:
    async def denied(connection: ScriptedConnection, source: Source) -> None:
        raise AccessDenied("not this topic")

    broker.on_open = denied
    bus = MessageBus(broker)
    bus.subscriber("t", group="g")(Collector())
    with pytest.raises(AccessDenied):
        async with bus:
            pass
    assert bus.host.state == "closed" and broker.connections[0].left


async def test_running_for_ever_leaves_what_it_could_not_begin(broker: ScriptedBroker) -> None:
    async def denied(connection: ScriptedConnection, source: Source) -> None:
        raise AccessDenied("not this topic")

    broker.on_open = denied
    bus = MessageBus(broker)
    bus.subscriber("t", group="g")(Collector())
    with pytest.raises(AccessDenied):
        await bus.run_forever()
    assert bus.host.state == "closed" and broker.connections[0].left


async def test_a_subscription_that_ended_with_open_messages_is_forgotten() -> None:
    broker, collector = ScriptedBroker(lease=0.15, extend_lease=True), Collector()
    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", collector, group="g", ack_mode="manual")
        (await broker.feed()).hand(1)
        await collector.wait()
        consumer = weakref.ref(bus.host.supervised[0].consumer)
        await subscription.unsubscribe()
        collector.messages.clear()
        del subscription
        await anyio.sleep(0.4)  # what is due is due by now

        def forgotten() -> bool:
            gc.collect()
            return consumer() is None

        await eventually(forgotten, "the consumer to be forgotten", 3)


async def test_a_replay_that_is_broken_off_is_over(broker: ScriptedBroker) -> None:
    ended: list[bool] = []

    class Replaying(ScriptedConnection):
        async def replay(self, pattern: str, since: Any, until: Any) -> AsyncIterator[Incoming]:
            try:
                for number in range(3):
                    yield incoming(pattern, number)
            finally:
                await anyio.sleep(0)
                ended.append(True)

    class ReplayingBroker(ScriptedBroker):
        @asynccontextmanager
        async def connect(self) -> AsyncIterator[Connection]:
            yield Replaying(self)

    async with connected(ReplayingBroker(replay="start")) as bus:
        messages = bus.replay("t")
        assert (await anext(messages)).data == 0
        await messages.aclose()  # type: ignore[attr-defined]
        assert ended


async def test_one_dead_letter_may_be_named_by_its_id() -> None:
    async with MessageBus(InMemoryBroker(), dead_letter_queue=DLQ) as bus:
        await bus.subscribe("t", Collector(LookupError("no")), group="g")
        ids = [await bus.publish("t", number) for number in range(25)]
        await eventually(lambda: bus.stats.dead_lettered == 25, "the dead letters")
        one = next(id for id in ids if any(id != other and id.startswith(other) for other in ids))
        assert await bus.drop_dead_letters(one) == 1
        left = {letter.id for letter in await bus.dead_letters()}
    assert left == set(ids) - {one}


async def test_a_verdict_offered_again_is_told_before_the_bus_leaves(broker: ScriptedBroker) -> None:
    failures = [PartialFailure({0: Unavailable("busy")})]

    async def busy(feed: ScriptedFeed, outcomes: Sequence[Settlement]) -> None:
        if failures:
            raise failures.pop()

    broker.on_settle = busy
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await eventually(lambda: not failures, "the refusal")
    assert (token, "ack") in feed.verdicts()
