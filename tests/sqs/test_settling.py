"""Batches of which a part fails, long delays, native redrive."""

from __future__ import annotations

import time

import anyio
import pytest
from amb_core import MessageBus
from amb_core.broker import Connection, ExtendsLease, Feed, Incoming, Outgoing, Settlement, Source, Verdict, Withdraws
from amb_core.errors import LeaseLost, MessageTooLarge, PartialFailure
from amb_sqs import SQSBroker
from amb_sqs._client import Received
from amb_sqs._feed import SqsFeed

from tests.core._help import Collector, eventually, stays

from .conftest import Make, Native

pytestmark = pytest.mark.anyio

JOBS = Source(id="jobs", pattern="jobs", group="g")


async def publish(connection: Connection, *bodies: bytes) -> None:
    await connection.send([Outgoing("jobs", body, {"amb-id": f"m{n}"}, confirm=True) for n, body in enumerate(bodies)])


async def take(feed: Feed, count: int, within: float = 10.0) -> list[Incoming]:
    got: list[Incoming] = []
    with anyio.fail_after(within):
        while len(got) < count:
            got += await feed.receive(count - len(got))
    return got


def handle(incoming: Incoming) -> str:
    assert isinstance(incoming.native, Received)
    return incoming.native.handle


async def test_a_batch_of_which_a_part_is_refused(broker: SQSBroker, native: Native, prefix: str) -> None:
    async with broker.connect() as connection, connection.open(JOBS):
        queue = await native.url(f"{prefix}jobs-_g")
        await native.sqs.set_queue_attributes(QueueUrl=queue, Attributes={"MaximumMessageSize": "1024"})
        bodies = [b"1", b"2" * 5000, *(b"%d" % n for n in range(3, 14)), b"4" * 5000]
        with pytest.raises(PartialFailure) as caught:
            await publish(connection, *bodies)
        assert {index: type(error) for index, error in caught.value.errors.items()} == {
            1: MessageTooLarge,
            13: MessageTooLarge,
        }
        assert await native.count(f"{prefix}jobs-_g") == 12


@pytest.mark.parametrize("verdict", ["ack", "release", "retry"])
async def test_settling_of_which_a_part_fails(broker: SQSBroker, native: Native, prefix: str, verdict: Verdict) -> None:
    async with broker.connect() as connection, connection.open(JOBS) as feed:
        await publish(connection, *(b"%d" % n for n in range(5)))
        got = await take(feed, 5)
        queue = await native.url(f"{prefix}jobs-_g")
        await native.sqs.delete_message(QueueUrl=queue, ReceiptHandle=handle(got[1]))
        outcomes = [Settlement(one.token, verdict) for one in got]
        with pytest.raises(PartialFailure) as caught:
            await feed.settle([*outcomes, Settlement("a stranger's", "ack")])
        assert {index: type(error) for index, error in caught.value.errors.items()} == {1: LeaseLost, 5: LeaseLost}
        left = 0 if verdict == "ack" else 4
        assert await native.count(f"{prefix}jobs-_g") == left
        assert len(await take(feed, left)) == left


async def test_extending_of_which_a_part_fails(broker: SQSBroker, native: Native, prefix: str) -> None:
    async with broker.connect() as connection, connection.open(JOBS) as feed:
        await publish(connection, b"1", b"2")
        got = await take(feed, 2)
        await native.sqs.delete_message(QueueUrl=await native.url(f"{prefix}jobs-_g"), ReceiptHandle=handle(got[0]))
        assert isinstance(feed, ExtendsLease)
        with pytest.raises(PartialFailure) as caught:
            await feed.extend([one.token for one in got])
        assert list(caught.value.errors) == [0]


async def test_a_lease_that_has_run_out_settles_nothing(make: Make) -> None:
    async with make(visibility_timeout=4).connect() as connection, connection.open(JOBS) as feed:
        await publish(connection, b"1")
        (first,) = await take(feed, 1)
        (second,) = await take(feed, 1)
        assert (first.attempt, second.attempt) == (1, 2)
        with pytest.raises(PartialFailure) as caught:
            await feed.settle([Settlement(first.token, "ack")])
        assert isinstance(caught.value.errors[0], LeaseLost)
        await feed.settle([Settlement(second.token, "ack")])
        await feed.settle([Settlement(second.token, "ack")])


async def test_delays_beyond_what_sqs_has(broker: SQSBroker, native: Native, prefix: str) -> None:
    """More than 15 minutes for publishing, more than 12 hours for a retry: the time is in the message."""
    async with broker.connect() as connection, connection.open(JOBS) as feed:
        await publish(connection, b"1")
        (incoming,) = await take(feed, 1)
        await feed.settle([Settlement(incoming.token, "retry", delay=13 * 3600.0, attempt=1)])
        await connection.send([Outgoing("jobs", b"2", {}, not_before=time.time() + 3600, confirm=True)])
        found = await native.attributes(f"{prefix}jobs-_g")
        assert found["ApproximateNumberOfMessagesDelayed"] == "2"


async def test_what_comes_early_is_hidden_and_not_counted(broker: SQSBroker, native: Native, prefix: str) -> None:
    async with broker.connect() as connection, connection.open(JOBS) as feed:
        due = time.time() + 2.5
        envelope = {"amb": 1, "topic": "jobs", "data": 1, "notBefore": due, "attempts": 4}
        await native.send(f"{prefix}jobs-_g", envelope)
        (incoming,) = await take(feed, 1)
        assert time.time() >= due
        assert incoming.attempt == 5


async def test_what_a_poll_brings_that_nobody_waits_for_is_given_back(make: Make) -> None:
    """A poll cannot be taken back: others have at once what it brings, and here it was no attempt."""
    broker = make(wait_time_seconds=20, visibility_timeout=30)
    async with broker.connect() as connection, connection.open(JOBS) as feed, broker.connect() as elsewhere:
        with anyio.move_on_after(0.5):
            await feed.receive(10)
        assert isinstance(feed, Withdraws) and isinstance(feed, SqsFeed)
        await feed.withdraw()
        poll = feed.lanes[0].poll
        assert poll is not None and not poll.done()
        await publish(connection, b"1")
        await eventually(poll.done, "the poll brings it")
        async with elsewhere.open(JOBS) as other:
            (first,) = await take(other, 1)
            await other.settle([Settlement(first.token, "retry", attempt=1)])
        (second,) = await take(feed, 1)
        assert (first.attempt, second.attempt) == (2, 2), "received three times, and handed over twice"


async def test_what_is_given_back_is_no_attempt_here(make: Make, native: Native, prefix: str) -> None:
    """Nor does the redrive policy get it, however often that happens."""
    await native.make(f"{prefix}dlq")
    broker = make(dlq_arn=await native.arn(f"{prefix}dlq"), max_receive_count=3)
    async with broker.connect() as connection, connection.open(JOBS) as feed:
        await publish(connection, b"1")
        for _ in range(8):
            (incoming,) = await take(feed, 1)
            assert incoming.attempt == 1
            await feed.settle([Settlement(incoming.token, "release")])
        (incoming,) = await take(feed, 1)
        await feed.settle([Settlement(incoming.token, "retry", attempt=1)])
        (incoming,) = await take(feed, 1)
        assert incoming.attempt == 2
        assert await native.count(f"{prefix}dlq") == 0


async def test_native_redrive_takes_what_crashes(make: Make, native: Native, prefix: str) -> None:
    await native.make(f"{prefix}dlq")
    broker = make(dlq_arn=await native.arn(f"{prefix}dlq"), max_receive_count=2, visibility_timeout=2)
    async with broker.connect() as connection, connection.open(JOBS) as feed:
        await publish(connection, b"1")
        for _ in range(2):
            await take(feed, 1)  # and never settle: the process might have crashed
        with anyio.fail_after(15):
            while not await native.count(f"{prefix}dlq"):
                await feed.receive(1)
        assert await native.count(f"{prefix}jobs-_g") == 0


async def test_failures_go_to_the_native_queue_with_their_reason(make: Make, native: Native, prefix: str) -> None:
    await native.make(f"{prefix}dlq")
    broker = make(dlq_arn=await native.arn(f"{prefix}dlq"), max_receive_count=3)
    failing, letters = Collector(RuntimeError("fails on purpose")), Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{prefix}dlq", letters)
        await bus.subscribe("jobs", failing, group="g", retry_delay=0.01)
        await bus.publish("jobs", {"n": 1})
        (letter,) = await letters.wait(1, 20)
        assert letter.dead is not None and letter.dead.attempts == 3 and "on purpose" in letter.dead.error
    assert len(failing.messages) == 3
    (kept,) = await native.receive(f"{prefix}dlq")
    assert "fails on purpose" in kept["Body"]


async def test_a_policy_beyond_the_native_limit_is_kept(make: Make, native: Native, prefix: str) -> None:
    await native.make(f"{prefix}dlq")
    broker = make(dlq_arn=await native.arn(f"{prefix}dlq"), max_receive_count=2, visibility_timeout=2)
    seen = Collector(RuntimeError("fails on purpose"), failures=5)
    async with MessageBus(broker) as bus:
        await bus.subscribe("jobs", seen, group="g", retries=9, retry_delay=0.01)
        await bus.publish("jobs", {"n": 1})
        await seen.wait(6, 30)
        await stays(lambda: len(seen.messages) == 6, "it came again", 2.5)
    assert [message.attempt for message in seen.messages] == [1, 2, 3, 4, 5, 6]
    assert await native.count(f"{prefix}dlq") == 0
