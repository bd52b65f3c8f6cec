"""JetStream: durable groups, leases, delays, deduplication, expiry, order, replay."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import anyio
import msgspec
import pytest
from amb_core import Message, MessageBus
from amb_core.broker import Incoming, Outgoing, Settlement, Source
from amb_core.errors import LeaseLost, PartialFailure
from amb_nats import NatsBroker
from nats.aio.client import Client

from tests.core._help import Collector, dead_letters, eventually, stays

pytestmark = pytest.mark.anyio
Make = Callable[..., NatsBroker]


def _source(pattern: str = "jobs", group: str | None = "g", id: str = "s", **fields: object) -> Source:
    return Source(id=id, pattern=pattern, group=group, **fields)  # type: ignore[arg-type]


def _message(body: bytes = b"1", topic: str = "jobs", id: str = "1", **fields: object) -> Outgoing:
    return Outgoing(topic, body, {"amb-id": id}, confirm=True, **fields)  # type: ignore[arg-type]


async def _one(feed: object, within: float = 8.0) -> Incoming:
    with anyio.fail_after(within):
        while True:
            if got := await feed.receive(1):  # type: ignore[attr-defined]
                return got[0]  # type: ignore[no-any-return]


async def test_a_foreign_client_is_heard(stored: NatsBroker, native: Client, word: str) -> None:
    async with MessageBus(stored) as bus:
        seen, shared = Collector(), Collector()
        await bus.subscribe("orders.#", seen)
        await bus.subscribe("orders.*", shared, group="g")
        await native.publish(f"{word}.orders.plain", b'{"a": 1}')
        await native.jetstream().publish(f"{word}.orders.headed", b"[2]", headers={"Trace": "x"})
        await seen.wait(2)
        await shared.wait(2)
    assert seen.data == shared.data == [{"a": 1}, [2]]
    assert seen.messages[1].headers == {"Trace": "x"} and seen.messages[1].topic == "orders.headed"


async def test_what_comes_just_as_a_member_pauses_counts_as_no_attempt(stored: NatsBroker) -> None:
    """A server that sends to a member which no longer listens counts that as a delivery."""
    seen, rounds = Collector(), 300
    async with MessageBus(stored) as bus, MessageBus(stored) as other:
        subscription = await bus.subscribe("jobs", seen, group="g")
        for number in range(rounds):
            subscription.pause()
            await other.publish("jobs", number, wait_for_confirmation=True)
            subscription.resume()
            await seen.wait(number + 1)
    assert {message.attempt for message in seen.messages} == {1}


async def test_a_foreign_client_reads_plain_json(stored: NatsBroker, native: Client, word: str) -> None:
    async with MessageBus(stored) as bus:
        id = await bus.publish("orders.x", {"a": 1}, headers={"who": "me"})
        subscription = await native.jetstream().subscribe(f"{word}.>", ordered_consumer=True)
        message = await subscription.next_msg(5)
        await subscription.unsubscribe()
    assert message.subject == f"{word}.orders.x" and json.loads(message.data) == {"a": 1}
    assert message.headers is not None and message.headers["amb-id"] == id and message.headers["who"] == "me"


async def test_a_second_publish_of_a_message_is_dropped(stored: NatsBroker) -> None:
    async with MessageBus(stored) as bus:
        seen = Collector()
        await bus.subscribe("#", seen, group="g")
        for topic in ("a", "a", "b"):
            await bus.publish(Message(topic, 1, id="the same"))
        await seen.wait(2)
        await stays(lambda: len(seen.data) == 2, "the second publish came too", 0.5)


async def test_a_dead_letter_comes_through_although_its_original_was_just_stored(stored: NatsBroker) -> None:
    async with MessageBus(stored, dead_letter_queue="dead") as bus:
        dead = await dead_letters(bus)
        for group in ("one", "two"):
            await bus.subscribe("jobs", Collector(ValueError("no")), group=group, retries=0)
        await bus.publish("jobs", 1)
        await dead.wait(2)
    assert dead.messages[0].id == dead.messages[1].id


async def test_what_has_expired_leaves_the_stream(stored: NatsBroker, native: Client, word: str) -> None:
    async with MessageBus(stored) as bus:
        await bus.publish("jobs", 1, ttl=4)
        await bus.publish("jobs", 2)
        stream = native.jetstream()
        assert (await stream.stream_info(word)).state.messages == 2
        with anyio.fail_after(20):
            while (await stream.stream_info(word)).state.messages == 2:
                await anyio.sleep(0.1)


async def test_a_delayed_message_comes_in_time_and_as_the_first_attempt(stored: NatsBroker) -> None:
    async with stored.connect() as connection, connection.open(_source()) as feed:
        due = time.time() + 2.0
        await connection.send([_message(not_before=due), _message(b"2", id="2")])
        assert (await _one(feed)).body == b"2"
        late = await _one(feed)
        assert late.body == b"1" and late.attempt == 1 and 0 <= time.time() - due < 5
        assert "amb-not-before" not in late.headers
        await feed.settle([Settlement(late.token, "retry")])
        assert (await _one(feed)).attempt == 2


async def test_a_delayed_message_that_nobody_fetched_early_counts_the_same(stored: NatsBroker) -> None:
    async with stored.connect() as connection:
        async with connection.open(_source()):
            pass
        await connection.send([_message(not_before=time.time() + 0.2)])
        await anyio.sleep(0.4)
        async with connection.open(_source()) as feed:
            for attempt in (1, 2, 3):
                incoming = await _one(feed)
                assert incoming.attempt == attempt
                await feed.settle([Settlement(incoming.token, "retry", attempt=attempt)])


async def test_giving_back_spends_no_attempt_however_often(stored: NatsBroker) -> None:
    async with stored.connect() as connection:
        await connection.send([_message()])
        for attempt in (1, 1, 1, 2, 2, 3):
            async with connection.open(_source(start="earliest")) as feed:
                incoming = await _one(feed)
                assert incoming.attempt == attempt
                if attempt < 3:
                    again = attempt == 1 and incoming.token.spared < 2  # type: ignore[attr-defined]
                    verdict = "release" if again or (attempt == 2 and incoming.token.spared < 3) else "retry"  # type: ignore[attr-defined]
                    await feed.settle([Settlement(incoming.token, verdict)])  # type: ignore[arg-type]


async def test_leaving_gives_back_what_was_not_settled(stored: NatsBroker) -> None:
    async with stored.connect() as connection:
        async with connection.open(_source(id="a")) as feed:
            await connection.send([_message(id=str(number)) for number in range(5)])
            got: list[Incoming] = []
            while len(got) < 5:
                got += await feed.receive(5 - len(got))
        async with connection.open(_source(id="b")) as other:
            back = [await _one(other) for _ in range(5)]
        assert {incoming.attempt for incoming in back} == {1}


async def test_a_verdict_after_the_lease_is_a_lost_lease(make: Make) -> None:
    async with make(lease=3.0).connect() as connection, connection.open(_source()) as feed:
        await connection.send([_message()])
        first = await _one(feed)
        second = await _one(feed)
        assert (first.attempt, second.attempt) == (1, 2)
        for call in (feed.settle([Settlement(first.token, "ack")]), feed.extend([first.token])):  # type: ignore[attr-defined]
            with pytest.raises(PartialFailure) as caught:
                await call
            assert isinstance(caught.value.errors[0], LeaseLost)
        await feed.settle([Settlement(second.token, "ack")])
        await feed.settle([Settlement(second.token, "ack")])


async def test_a_verdict_counts_on_the_next_connection(stored: NatsBroker, native: Client, word: str) -> None:
    async with stored.connect() as connection:
        async with connection.open(_source()) as feed:
            await connection.send([_message()])
            incoming = await _one(feed)
            await connection._link.give_up()  # type: ignore[attr-defined]
            with pytest.raises(Exception, match="lost"):
                await _one(feed)
    async with stored.connect() as connection, connection.open(_source()) as feed:
        await feed.settle([Settlement(incoming.token, "ack")])
        with anyio.fail_after(5):  # the server counts acknowledgements a moment after it got them
            while True:
                (consumer,) = await native.jetstream().consumers_info(word)
                if consumer.num_ack_pending == 0:
                    break
        assert consumer.ack_floor is not None
        assert consumer.ack_floor.stream_seq == 1


async def test_a_cancelled_receive_loses_nothing(stored: NatsBroker) -> None:
    async with stored.connect() as connection, connection.open(_source()) as feed:
        with anyio.move_on_after(0.05):
            await feed.receive(3)
        await connection.send([_message(id=str(number)) for number in range(3)])
        await anyio.sleep(0.1)
        got = [(await _one(feed)) for _ in range(3)]
    assert [incoming.attempt for incoming in got] == [1, 1, 1]


async def test_no_more_is_fetched_than_there_are_places(stored: NatsBroker, native: Client, word: str) -> None:
    async with stored.connect() as connection, connection.open(_source()) as feed:
        await connection.send([_message(id=str(number)) for number in range(20)])
        got: list[Incoming] = []
        while len(got) < 4:
            got += await feed.receive(4 - len(got))
        with anyio.fail_after(5):  # the server confirms before it tells its consumers
            while True:
                (consumer,) = await native.jetstream().consumers_info(word)
                if (consumer.num_ack_pending or 0) + (consumer.num_pending or 0) == 20:
                    break
        assert consumer.num_ack_pending == 4


async def test_without_waiting_an_empty_topic_is_empty_at_once(stored: NatsBroker) -> None:
    async with stored.connect() as connection, connection.open(_source()) as feed:
        began = time.monotonic()
        assert await feed.receive(5, wait=False) == []
        assert time.monotonic() - began < 3  # who waits waits for four
        await connection.send([_message()])
        with anyio.fail_after(5):
            # The server confirms before it tells its consumers.
            while not await feed.receive(5, wait=False):
                pass


async def test_no_group_leaves_nothing_behind(stored: NatsBroker, native: Client, word: str) -> None:
    async with MessageBus(stored) as bus:
        await bus.subscribe("jobs", Collector())
        assert len(await native.jetstream().consumers_info(word)) == 1
    assert await native.jetstream().consumers_info(word) == []


async def test_no_group_goes_on_where_its_link_broke(stored: NatsBroker) -> None:
    async with stored.connect() as publisher:
        async with stored.connect() as connection:
            async with connection.open(_source(group=None)) as feed:
                await publisher.send([_message(b"1", id="1")])
                incoming = await _one(feed)
                await feed.settle([Settlement(incoming.token, "ack")])
                await connection._link.give_up()  # type: ignore[attr-defined]
                with pytest.raises(Exception, match="lost"):
                    await _one(feed)
        await publisher.send([_message(b"2", id="2")])
        async with stored.connect() as connection, connection.open(_source(group=None)) as feed:
            assert (await _one(feed)).body == b"2"


async def test_no_group_goes_on_although_the_server_has_forgotten_it(
    stored: NatsBroker, native: Client, word: str
) -> None:
    """As after an hour in which it took nothing, because it was paused."""
    async with MessageBus(stored) as bus:
        seen = Collector()
        await bus.subscribe("jobs", seen)
        await bus.publish("jobs", 1)
        await seen.wait()
        (consumer,) = await native.jetstream().consumers_info(word)
        await native.jetstream().delete_consumer(word, consumer.name)
        await bus.publish("jobs", 2)
        await bus.publish("jobs", 3)
        await seen.wait(3)
    assert seen.data == [1, 2, 3]


async def test_a_stream_removed_under_a_live_bus_is_made_again(stored: NatsBroker, native: Client, word: str) -> None:
    async with MessageBus(stored) as bus:
        seen = Collector()
        await bus.subscribe("jobs", seen, group="g")
        await bus.publish("jobs", 1)
        await seen.wait()
        await native.jetstream().delete_stream(word)

        async def again() -> None:
            while len(seen.data) < 2:
                await bus.publish("jobs", 2)
                await anyio.sleep(0.1)

        with anyio.fail_after(20):
            await again()


async def test_an_ordered_group_moves_to_the_next_member_at_once(stored: NatsBroker) -> None:
    async with MessageBus(stored) as one, MessageBus(stored) as publisher:
        first, second = Collector(), Collector()
        await one.subscribe("log", first, group="g", ordered_by="key")
        other = MessageBus(stored)
        await other.subscribe("log", second, group="g", ordered_by="key")
        for number in range(20):
            await publisher.publish("log", number, key=f"k{number % 3}")
        await eventually(lambda: len(first.data) + len(second.data) == 20, "not all came", 10)
        assert not (first.data and second.data), "two members had messages at once"
        active, rest = (one, second) if first.data else (other, first)
        await active.disconnect()
        began = time.monotonic()
        await publisher.publish("log", 20, key="k0")
        await rest.wait(1)
        assert time.monotonic() - began < 4
        await other.disconnect()


async def test_an_ordered_member_that_vanishes_is_followed_in_order(make: Make) -> None:
    """Its unsettled messages come first, in their order, before anything that was published later."""
    stored = make(lease=3.0)
    async with stored.connect() as publisher:
        async with stored.connect() as connection:
            async with connection.open(_source(id="a", ordered_by="key")) as feed:
                await publisher.send([_message(str(n).encode(), id=str(n), key="k") for n in range(3)])
                got: list[Incoming] = []
                while len(got) < 3:
                    got += await feed.receive(3)
                await connection._link.give_up()  # type: ignore[attr-defined]
                with pytest.raises(Exception, match="lost"):
                    await _one(feed)
        await publisher.send([_message(str(n).encode(), id=str(n), key="k") for n in range(3, 6)])
        async with stored.connect() as connection, connection.open(_source(id="b", ordered_by="key")) as feed:
            bodies = list[bytes]()
            while len(bodies) < 6:
                incoming = await _one(feed, 20)
                bodies.append(incoming.body)
                await feed.settle([Settlement(incoming.token, "ack")])
    assert bodies == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_an_ordered_message_whose_lease_ran_out_unseen_comes_before_the_next(make: Make) -> None:
    async with make(lease=3.0).connect() as connection:
        async with connection.open(_source(ordered_by="key")) as feed:
            with anyio.move_on_after(0.05):
                await feed.receive(3)
            await connection.send([_message(b"0", id="0", key="k")])
            await anyio.sleep(2.1)
            await connection.send([_message(str(n).encode(), id=str(n), key="k") for n in (1, 2)])
            await anyio.sleep(1.2)
            bodies = list[bytes]()
            while len(bodies) < 3:
                incoming = await _one(feed)
                bodies.append(incoming.body)
                await feed.settle([Settlement(incoming.token, "ack")])
    assert bodies == [b"0", b"1", b"2"]


async def test_replay_of_a_pattern_reads_only_what_matches(stored: NatsBroker) -> None:
    async with MessageBus(stored) as bus:
        for number in range(500):
            await bus.publish(f"log.{number % 2}.x", number)
        seen = [message.data async for message in bus.replay("log.1.#")]
        assert seen == list(range(1, 500, 2))
        assert [message.data async for message in bus.replay("log.#.x")] == list(range(500))
        assert [message async for message in bus.replay("nothing.*")] == []


async def test_health_says_how_full_the_stream_is(stored: NatsBroker, word: str) -> None:
    async with MessageBus(stored) as bus:
        await bus.publish("x", 1)
        details = (await bus.health()).details
    assert details["stream"].startswith(f"{word}: 1 messages") and details["version"].startswith("nats-server 2.")


async def test_two_prefixes_do_not_meet(make: Make, word: str) -> None:
    other = make(stream_name=f"{word}2", subject_prefix=f"{word}2")
    async with MessageBus(make()) as bus, MessageBus(other) as stranger:
        seen = Collector()
        await stranger.subscribe("#", seen)
        await bus.publish("x", 1)
        await stays(lambda: not seen.data, "it came through", 0.3)
    assert msgspec.structs.replace(other, subject_prefix="x").prefix == "x"
