"""How a message lies in Redis: the fields of a stream entry, and the frame on a channel."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from amb_core import MessageBus

from tests.servers.redis import RedisServer

from ._golden import load

PREFIX = "wire-golden"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _native(name: str) -> dict[bytes, Any]:
    """What the golden message is in Redis, as docs/wire-format.md says."""
    golden = load(name)
    fields: dict[bytes, Any] = {b"body": golden.bytes, b"headers": golden.headers}
    return fields | ({} if golden.key is None else {b"key": golden.key.encode()})


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "lane"), [("plain", b"s"), ("full", b"x")])
async def test_a_stream_entry_has_the_fields_of_the_golden_file(
    name: str, lane: bytes, redis_server: RedisServer
) -> None:
    from .test_messages import FULL, PLAIN

    client = redis.Redis.from_url(redis_server.url)
    message = PLAIN if name == "plain" else FULL
    key = f"{PREFIX}:{{{message.topic}}}:".encode() + lane
    client.delete(key)
    try:
        async with MessageBus(f"{redis_server.url}?prefix={PREFIX}") as bus:
            await bus.publish(message)
        entries: Any = client.xrange(key)
        [(_, fields)] = entries
        fields[b"headers"] = json.loads(fields[b"headers"]) | {
            header: load(name).headers[header] for header in load(name).varies
        }
        assert fields == _native(name)
    finally:
        client.delete(key)
        client.close()


@pytest.mark.anyio
async def test_a_message_on_a_channel_is_a_frame(redis_server: RedisServer) -> None:
    from .test_messages import PLAIN

    client = redis.Redis.from_url(redis_server.url)
    golden = load("plain")
    with client.pubsub() as listening:  # type: ignore[no-untyped-call]
        listening.subscribe(f"{PREFIX}:ch:{PLAIN.topic}")
        assert listening.get_message(timeout=10) is not None
        async with MessageBus(f"{redis_server.url}?prefix={PREFIX}&use_streams=no") as bus:
            await bus.publish(PLAIN)
        seen = listening.get_message(timeout=10)
    client.close()
    assert seen is not None
    mark, _, rest = seen["data"].partition(b" ")
    head, _, body = rest.partition(b"\n")
    assert (mark, json.loads(head), body) == (b"AMB1", {"headers": golden.headers}, golden.bytes)


@pytest.mark.anyio
@pytest.mark.parametrize("streams", [True, False])
async def test_a_foreign_client_of_redis_reaches_a_subscriber(streams: bool, redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    golden = load("foreign")
    url = f"{redis_server.url}?prefix={PREFIX}&use_streams={str(streams).lower()}"
    try:
        async with MessageBus(url) as bus, bus.stream(golden.topic) as messages:
            if streams:
                client.xadd(f"{PREFIX}:{{{golden.topic}}}:s", {"body": golden.bytes})
            else:
                client.publish(f"{PREFIX}:ch:{golden.topic}", golden.bytes)
            message = await anext(messages)
        assert (message.data, message.headers) == ({"temperature": 21.5}, {})
    finally:
        client.delete(f"{PREFIX}:{{{golden.topic}}}:s")
        client.close()
