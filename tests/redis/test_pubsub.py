"""Plain pub/sub: live, unstored, at most once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from amb_core import MessageBus
from amb_core.broker import Source
from amb_core.errors import NoResponders, UnsupportedError
from amb_redis import RedisBroker

from tests.core._help import Collector, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def plain(make: Callable[..., RedisBroker]) -> RedisBroker:
    return make(use_streams=False)


async def test_a_frame_is_headers_and_the_body_as_it_is(plain: RedisBroker, native: Any, prefix: str) -> None:
    with native.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe(f"{prefix}:ch:*")
        listener.get_message(timeout=5)
        async with MessageBus(plain) as bus:
            await bus.publish("a.b", {"x": 1}, headers={"h": "v"}, key="k")
        frame = None
        while frame is None:
            frame = listener.get_message(timeout=5)
    assert frame["channel"] == f"{prefix}:ch:a.b".encode()
    head, _, body = frame["data"].partition(b"\n")
    assert head.startswith(b'AMB1 {"headers":{"amb-id":')
    assert head.endswith(b'},"key":"k"}')
    assert body == b'{"x":1}'


async def test_a_foreign_message_is_all_body(plain: RedisBroker, native: Any, prefix: str) -> None:
    async with MessageBus(plain) as bus:
        seen = Collector()
        await bus.subscribe("foreign.#", seen)
        native.publish(f"{prefix}:ch:foreign.x", b'{"a": 1}')
        native.publish(f"{prefix}:ch:foreign.y", b"2")
        await seen.wait(2)
    assert [(message.topic, message.data) for message in seen.messages] == [("foreign.x", {"a": 1}), ("foreign.y", 2)]


@pytest.mark.parametrize("topic", ["a.?", "a.[x]", "a.\\d", "a.^", "a.x?y"])
async def test_glob_characters_are_literal(plain: RedisBroker, topic: str) -> None:
    async with MessageBus(plain) as bus:
        seen = Collector()
        await bus.subscribe(f"{topic}.#", seen)
        await bus.publish("a.x.z", "wrong")
        await bus.publish("a.d.z", "wrong")
        await bus.publish(f"{topic}.z", "right")
        await seen.wait()
        assert seen.data == ["right"]


async def test_overlapping_patterns_call_each_handler_once(plain: RedisBroker) -> None:
    async with MessageBus(plain) as bus:
        seen = [Collector() for _ in range(3)]
        for pattern, handler in zip(("a.*", "a.#", "a.b"), seen, strict=True):
            await bus.subscribe(pattern, handler)
        await bus.publish("a.b", 1)
        for handler in seen:
            await handler.wait()
        await anyio.sleep(0.2)
        assert [handler.data for handler in seen] == [[1], [1], [1]]


async def test_a_request_nobody_listens_to_fails_at_once(plain: RedisBroker) -> None:
    async with MessageBus(plain) as bus:
        with anyio.fail_after(10), pytest.raises(NoResponders):
            await bus.request("nobody.here", 1, timeout=30)


async def test_replay_is_refused(plain: RedisBroker) -> None:
    async with MessageBus(plain) as bus:
        with pytest.raises(UnsupportedError, match="replay"):
            await anext(bus.replay("a.b"))


async def test_a_broken_link_is_replaced(plain: RedisBroker, native: Any) -> None:
    async with MessageBus(plain) as bus:
        seen, lost = Collector(), list[str]()
        bus.on("subscription.lost")(lost.append)
        await bus.subscribe("live.x", seen)
        await eventually(lambda: native.pubsub_numsub(f"{plain.prefix}:ch:live.x")[0][1] == 1, "subscribed", 5)
        native.client_kill_filter(_type="pubsub")
        await eventually(lambda: lost, "the loss is told", 5)
        await eventually(lambda: native.pubsub_numsub(f"{plain.prefix}:ch:live.x")[0][1] == 1, "subscribed again", 5)
        await bus.publish("live.x", 1)
        await seen.wait()


async def test_leaving_ends_the_subscription_on_the_server(plain: RedisBroker, native: Any) -> None:
    async with MessageBus(plain) as bus:
        subscription = await bus.subscribe("gone.x", Collector())
        await bus.unsubscribe(subscription)
        await eventually(lambda: native.pubsub_channels(f"{plain.prefix}:ch:gone.x") == [], "unsubscribed", 5)


async def test_a_group_below_the_bus_is_refused_too(plain: RedisBroker) -> None:
    async with plain.connect() as connection:
        with pytest.raises(UnsupportedError, match="use_streams"):
            async with connection.open(Source(id="s", pattern="a", group="g")):
                pass


async def test_replies_come_over_pubsub_with_streams_too(broker: RedisBroker, native: Any, prefix: str) -> None:
    async with MessageBus(broker) as bus:
        bus.responder("sum")(_double)
        assert (await bus.request("sum", 21, timeout=5)).data == 42
        channels = native.pubsub_channels(f"{prefix}:in:*")
        assert len(channels) == 1
    assert list(native.scan_iter(f"{prefix}*inbox*", count=10000)) == [], "a reply was stored"


async def _double(data: int) -> int:
    return 2 * data
