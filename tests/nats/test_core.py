"""Core NATS: live, unstored, with queue groups, inboxes and no-responders."""

from __future__ import annotations

import json
import logging
import time

import anyio
import msgspec
import pytest
from amb_core import Message, MessageBus
from amb_core.errors import MessageTooLarge, NoResponders, RequestTimeout
from amb_nats import NatsBroker
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.core._help import Collector, eventually, stays

pytestmark = pytest.mark.anyio


async def test_a_foreign_client_is_heard(core: NatsBroker, native: Client, word: str) -> None:
    async with MessageBus(core) as bus:
        seen = Collector()
        await bus.subscribe(f"{word}.#", seen)
        await native.publish(f"{word}.plain", b'{"a": 1}')
        await native.publish(f"{word}.headed", b"[2]", headers={"Trace": "x"})
        await seen.wait(2)
    assert seen.data == [{"a": 1}, [2]]
    assert [message.topic for message in seen.messages] == [f"{word}.plain", f"{word}.headed"]
    assert seen.messages[1].headers == {"Trace": "x"} and isinstance(seen.messages[0].native, Msg)


async def test_a_foreign_client_reads_plain_json(core: NatsBroker, native: Client, word: str) -> None:
    subscription = await native.subscribe(f"{word}.*")
    await native.flush()
    async with MessageBus(core) as bus:
        id = await bus.publish(f"{word}.x", {"a": 1}, headers={"who": "me", "odd": "Zoë\n"}, key="k")
    message = await subscription.next_msg(5)
    assert json.loads(message.data) == {"a": 1}
    assert message.headers is not None
    assert message.headers["amb-id"] == id and message.headers["who"] == "me" and message.headers["amb-key"] == "k"
    assert json.loads(message.headers["amb-headers"]) == {"odd": "Zoë\n"}


async def test_hash_hears_nothing_of_nats_itself(core: NatsBroker, native: Client, word: str) -> None:
    async with MessageBus(core) as bus:
        seen = Collector()
        await bus.subscribe("#", seen)
        await native.publish("_INBOX.abc", b"1")
        await native.publish("$JS.API.INFO", b"")
        await native.publish(word, b"1")
        await eventually(lambda: any(message.topic == word for message in seen.messages), "nothing came", 5)
    assert not [message.topic for message in seen.messages if message.topic.startswith(("_INBOX", "$"))]


async def test_nobody_to_answer_is_said_at_once(core: NatsBroker, word: str) -> None:
    async with MessageBus(core) as bus:
        began = time.monotonic()
        with pytest.raises(NoResponders, match=word):
            await bus.request(word, 1, timeout=10)
        assert time.monotonic() - began < 5


async def test_a_stream_that_stores_requests_hides_no_responder(core: NatsBroker, native: Client, word: str) -> None:
    """It acknowledges to where only the server should say that nobody is there."""
    stream = native.jetstream()
    await stream.add_stream(name=word, subjects=[f"{word}.>"], no_ack=False)
    async with MessageBus(core) as bus:

        @bus.responder(f"{word}.echo")
        async def echo(message: Message) -> object:
            return message.data

        asked = range(500)
        async with anyio.create_task_group() as group:
            for n in asked:
                group.start_soon(_answered, bus, f"{word}.echo", n)
        with pytest.raises(RequestTimeout):  # the stream takes it
            await bus.request(f"{word}.nobody", 1, timeout=0.5)
    assert (await stream.stream_info(word)).state.messages == len(asked) + 1


async def _answered(bus: MessageBus, topic: str, data: int) -> None:
    assert (await bus.request(topic, data, timeout=20)).data == data


async def test_nothing_is_lost_when_a_member_leaves_its_group(core: NatsBroker, word: str) -> None:
    """A member leaves in the middle of a stream of messages: what the server had given it is still handled."""
    seen = Collector()

    async def slowly(message: Message) -> None:
        await anyio.sleep(0.002)
        await seen(message)

    async with MessageBus(core) as stays_on, MessageBus(core) as publisher:
        await stays_on.subscribe(word, seen, group="g")
        leaver = MessageBus(core)
        await leaver.subscribe(word, slowly, group="g", concurrency=1)
        for number in range(300):
            await publisher.publish(word, number)
            if number == 150:
                async with anyio.create_task_group() as group:
                    group.start_soon(leaver.disconnect)
                    for extra in range(300, 400):
                        await publisher.publish(word, extra)
        await seen.wait(400)
    assert sorted(seen.data) == list(range(400))


async def test_a_buffer_that_is_full_drops_with_a_warning(
    core: NatsBroker, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with MessageBus(msgspec.structs.replace(core, buffer_size=20_000)) as bus, MessageBus(core) as publisher:
        seen = Collector()
        subscription = await bus.subscribe(word, seen, concurrency=1)
        subscription.pause()
        with caplog.at_level(logging.WARNING, "amb.nats"):
            for number in range(100):
                await publisher.publish(word, number, wait_for_confirmation=True)
            await bus.health()  # a round trip: everything has arrived
        assert word in caplog.text and "jetstream=True" in caplog.text
        subscription.resume()
        await seen.wait(10)
        await stays(lambda: len(seen.data) <= 22, "more than the buffer holds", 0.3)


async def test_headers_count_for_the_size_of_a_message(core: NatsBroker, word: str) -> None:
    async with MessageBus(core) as bus:
        await bus.publish(word, "x", headers={"a": "y" * 60_000})
        with pytest.raises(MessageTooLarge, match="max_payload"):
            await bus.publish(word, "x" * 900_000, headers={"a": "y" * 200_000})
        await bus.publish(word, "still connected")


async def test_more_urgent_messages_overtake(core: NatsBroker, word: str) -> None:
    async with MessageBus(core) as bus, MessageBus(core) as publisher:
        seen = Collector()
        subscription = await bus.subscribe(word, seen, concurrency=1)
        subscription.pause()
        for number in range(50):
            await publisher.publish(word, number, priority="background")
        await publisher.publish(word, "urgent", priority="urgent", wait_for_confirmation=True)
        subscription.resume()
        await seen.wait(51)
    assert seen.data.index("urgent") <= 2
