"""Leaving finishes what was published before, also on topics that did not exist until then."""

from __future__ import annotations

import secrets

import pytest
from amb_core import Message, MessageBus
from amb_redis import RedisBroker

from tests.servers.redis import RedisServer

pytestmark = pytest.mark.anyio


async def test_the_first_message_of_a_new_topic_is_handled_before_leaving(redis_server: RedisServer) -> None:
    for _ in range(30):
        name, handled = secrets.token_hex(4), list[str]()

        async def note(message: Message, handled: list[str] = handled) -> None:
            handled.append(message.topic)

        async with MessageBus(RedisBroker(redis_server.url)) as bus:
            await bus.subscribe(f"{name}.*", note)
            await bus.publish(f"{name}.first", 1)
        assert handled == [f"{name}.first"]
