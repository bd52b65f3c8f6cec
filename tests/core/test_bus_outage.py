"""The broker is down at start, dies in the middle, comes back: a clear error or no loss, and nothing loops."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from amb_core import (
    AccessDenied,
    AuthenticationError,
    BrokerUnavailable,
    Message,
    MessageBus,
    PartialFailure,
    PublishUnknown,
)
from amb_core.errors import LeaseLost, Unavailable

from tests.core._faulty import FaultyBroker
from tests.core._help import Collector, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def broker() -> AsyncIterator[FaultyBroker]:
    """A broker that outlives the connections the tests cut."""
    faulty = FaultyBroker()
    async with faulty.inner.connect():
        yield faulty


@asynccontextmanager
async def connected(broker: FaultyBroker, publish_timeout: float = 10.0) -> AsyncIterator[MessageBus]:
    async with MessageBus(broker, connect_timeout=2, publish_timeout=publish_timeout, drain_timeout=2) as bus:
        yield bus


async def test_connecting_to_a_broker_that_is_down_fails_within_the_deadline(broker: FaultyBroker) -> None:
    broker.up = False
    bus, begin = MessageBus(broker, connect_timeout=1), time.monotonic()
    with pytest.raises(ConnectionError, match="the line is cut"):
        await bus.connect()
    assert time.monotonic() - begin < 2.7 and broker.attempts > 1
    assert not bus.connected


async def test_connecting_to_a_broker_that_does_not_answer_says_how_long_it_waited(broker: FaultyBroker) -> None:
    broker.hangs = True
    with pytest.raises(ConnectionError, match=r"FaultyBroker.* did not answer within 0\.2 s"):
        await MessageBus(broker, connect_timeout=0.2).connect()


async def test_publishing_first_to_a_broker_that_is_down_fails_within_the_deadline(broker: FaultyBroker) -> None:
    broker.up = False
    with pytest.raises(ConnectionError):
        await MessageBus(broker, connect_timeout=0.2).publish("t", 1)


async def test_a_bus_whose_first_connect_failed_connects_when_asked_again(broker: FaultyBroker) -> None:
    broker.up = False
    bus = MessageBus(broker, connect_timeout=0.2)
    with pytest.raises(ConnectionError):
        await bus.connect()
    broker.mend()
    async with bus:
        assert await bus.publish("t", 1)


async def test_a_broker_that_comes_up_within_the_deadline_is_waited_for(broker: FaultyBroker) -> None:
    broker.up = False
    async with anyio.create_task_group() as group:

        async def mend() -> None:
            await eventually(lambda: broker.attempts > 1, "a second attempt")
            broker.mend()

        group.start_soon(mend)
        async with connected(broker) as bus:
            assert bus.connected


@pytest.mark.parametrize("error", [AuthenticationError("wrong password"), AccessDenied("not for you")])
async def test_refused_credentials_are_not_tried_again(broker: FaultyBroker, error: Exception) -> None:
    broker.refuses = error
    with pytest.raises(type(error), match=str(error)):
        await MessageBus(broker, connect_timeout=5).connect()
    assert broker.attempts == 1


async def test_a_subscription_that_is_refused_raises_and_is_not_tried_again(broker: FaultyBroker) -> None:
    broker.open_errors = [AccessDenied("not this topic")]
    async with connected(broker) as bus:
        with pytest.raises(AccessDenied, match="not this topic"):
            await bus.subscribe("t", Collector())
        assert (await bus.health()).subscriptions == []


async def test_a_subscription_that_fails_at_first_is_opened_again(broker: FaultyBroker) -> None:
    broker.open_errors = [Unavailable("just a moment")] * 2
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector)
        await bus.publish("t", 1)
        await collector.wait()


async def test_publishing_bridges_an_outage_and_subscriptions_come_back(broker: FaultyBroker) -> None:
    collector, events = Collector(), list[str]()
    async with connected(broker) as bus:
        bus.on("subscription.lost")(lambda id: events.append(f"lost {id}"))
        bus.on("subscription.restored")(lambda id: events.append(f"restored {id}"))
        subscription = await bus.subscribe("t", collector, group="g")
        await bus.publish("t", 1)
        await collector.wait()
        broker.cut()
        await eventually(lambda: not bus.connected, "the loss to be noticed")
        async with anyio.create_task_group() as group:
            group.start_soon(bus.publish, "t", 2)
            await eventually(lambda: broker.attempts >= 3, "attempts to reconnect")
            assert (await bus.health()).status == "unhealthy"
            broker.mend()
        await collector.wait(2)
        assert (await bus.health()).status == "healthy"
    assert collector.data == [1, 2]
    assert events == [f"lost {subscription}", f"restored {subscription}"]
    assert bus.stats.reconnects == 1


async def test_publishing_gives_up_after_its_timeout(broker: FaultyBroker) -> None:
    async with connected(broker, publish_timeout=0.3) as bus:
        broker.cut()
        begin = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await bus.publish("t", 1)
        assert time.monotonic() - begin < 3


async def test_an_uncertain_publish_is_reported_and_not_repeated(broker: FaultyBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector)
        broker.send_errors = [PublishUnknown("no answer came")]
        with pytest.raises(PublishUnknown):
            await bus.publish("t", "unknown")
        await bus.publish("t", "known")
        await collector.wait()
    assert collector.data == ["known"]


async def test_a_transient_failure_to_publish_is_tried_again(broker: FaultyBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector)
        broker.send_errors = [Unavailable("busy"), Unavailable("busy")]
        await bus.publish("t", 1)
        await collector.wait()
    assert collector.data == [1]


async def test_a_batch_names_what_failed_and_the_rest_goes_through(broker: FaultyBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector)
        broker.refused = {1}
        with pytest.raises(PartialFailure) as caught:
            await bus.publish_batch([Message("t", number) for number in range(3)])
        await collector.wait(2)
    assert caught.value.errors.keys() == {1} and isinstance(caught.value.errors[1], AccessDenied)
    assert collector.data == [0, 2]


async def test_none_of_three_hundred_messages_is_lost_when_the_line_is_cut_nine_times(broker: FaultyBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g")
        for number in range(300):
            await bus.publish("t", number)
            if number % 30 == 29:
                broker.cut(stay_down=False)
        await eventually(lambda: set(collector.data) == set(range(300)), lambda: f"{len(set(collector.data))} of 300")
        await bus.publish("t", "last")
        await eventually(lambda: "last" in collector.data, "the subscription to be back")
    assert bus.stats.reconnects == 10


async def test_what_was_in_flight_when_the_line_was_cut_is_not_lost(broker: FaultyBroker) -> None:
    begun, go_on = list[int](), anyio.Event()

    async def slow(message: Message) -> None:
        begun.append(message.data)
        await go_on.wait()

    async with connected(broker) as bus:
        await bus.subscribe("t", slow, group="g", concurrency=4)
        for number in range(4):
            await bus.publish("t", number)
        await eventually(lambda: len(begun) == 4, "four in flight")
        broker.cut(stay_down=False)
        await bus.publish("nobody", "notices the cut: every place is taken, so nobody receives")
        await eventually(lambda: bus.stats.reconnects == 1, "the new connection")
        go_on.set()
        await eventually(lambda: len(begun) == 8 and bus.stats.acked >= 4, lambda: f"{begun}")
    assert sorted(begun) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_requests_work_again_after_an_outage(broker: FaultyBroker) -> None:
    async with connected(broker) as bus:

        @bus.responder("r", group="g")
        async def answer(request: Message) -> int:
            return int(request.data) + 1

        assert (await bus.request("r", 1, timeout=5)).data == 2
        broker.cut(stay_down=False)
        await eventually(lambda: bus.stats.reconnects == 1 and bus.connected, "the new connection")
        await eventually(lambda: bus.requests._open and bus._declared[0].health().consuming, "inbox and responder")
        assert (await bus.request("r", 2, timeout=5)).data == 3


async def test_a_verdict_the_broker_could_not_take_is_offered_again(broker: FaultyBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g")
        broker.settle_errors = [PartialFailure({0: Unavailable("busy")})]
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked == 1, "the acknowledgement")
    assert collector.data == [1] and bus.stats.settle_errors == 0


async def test_a_lost_lease_is_counted_and_touches_nothing(broker: FaultyBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g")
        broker.settle_errors = [PartialFailure({0: LeaseLost("it went to somebody else")})]
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.settle_errors == 1, "the error")
        await bus.publish("t", 2)
        await collector.wait(2)


async def test_a_bug_in_a_backend_is_logged_and_the_feed_opened_again(
    broker: FaultyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Collector()
    broker.receive_errors = [ZeroDivisionError("a bug")]
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g")
        await bus.publish("t", 1)
        await collector.wait()
    assert "ZeroDivisionError" in caplog.text


async def test_leaving_while_the_broker_is_down_does_not_wait_for_it(broker: FaultyBroker) -> None:
    bus = MessageBus(broker, connect_timeout=5, drain_timeout=5)
    await bus.subscribe("t", Collector())
    broker.cut()
    await eventually(lambda: broker.attempts > 1, "attempts to reconnect")
    begin = time.monotonic()
    await bus.disconnect()
    assert time.monotonic() - begin < 2
