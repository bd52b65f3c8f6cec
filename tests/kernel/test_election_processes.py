"""Leadership across processes, on real servers: killed, frozen and thawed, never two that both believe they lead."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from amb_core import MessageBus
from amb_kernel import KernelSpace
from amb_redis import RedisBroker

from tests.servers.redis import RedisServer

from ._candidates import BROKERS, TTL, Candidates, running, settings_on
from ._help import collecting, eventually, kernel_with

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


@pytest.fixture(params=BROKERS)
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment in which a bus is on a real server, apart from other tests."""
    return settings_on(request.param, request.getfixturevalue(BROKERS[request.param][0]))


@pytest.fixture
def candidates(settings: dict[str, str], tmp_path: Path) -> Iterator[Candidates]:
    with running(settings, tmp_path) as made:
        yield made


async def test_never_two_leaders_while_processes_are_killed_frozen_and_thawed(candidates: Candidates) -> None:
    for name in "abc":
        candidates.start(name)
    await eventually(lambda: candidates.leader, "the first leader", 60)
    frozen = ""
    for round in range(4):
        leader = candidates.leader
        assert leader is not None
        candidates.send(leader, signal.SIGKILL if round == 2 else signal.SIGSTOP)
        await candidates.follows(leader)
        if frozen:
            candidates.send(frozen, signal.SIGCONT)
        frozen = "" if round == 2 else leader
        await anyio.sleep(TTL / 4)
    if frozen:
        candidates.send(frozen, signal.SIGCONT)
    await anyio.sleep(TTL)
    tokens = candidates.check()
    assert len(tokens) >= 5, tokens
    await eventually(lambda: len(candidates.beliefs()) > 200, "they looked often", 20)
    candidates.check()


async def test_two_kernels_share_policies_leaders_and_messages(redis_server: RedisServer) -> None:
    broker = RedisBroker(redis_server.url, prefix=f"e{secrets.token_hex(4)}")
    rule = {"topic": "commands", "allow": ["admin"]}
    one, _ = kernel_with(rule, message_bus=MessageBus(broker))
    two, records = kernel_with(rule, message_bus=MessageBus(broker))
    async with one, two:
        inbox = collecting()
        await two.subscribe("commands", inbox)
        await one.as_agent("bob", roles=["admin"]).publish("commands", 1)
        async with MessageBus(broker) as stranger:
            await stranger.publish("commands", 2)
        await inbox.wait()
        await eventually(lambda: records.of("refused"), "the refusal")
        leader, other = await one.elect_leader("lead", ttl=5), await two.elect_leader("lead", ttl=5)
        assert leader and not other
        await leader.resign()
        assert await two.elect_leader("lead", ttl=5)
    assert inbox.data == [1]


@pytest.mark.parametrize("use_streams", [True, False])
async def test_plain_pubsub_elects_too(redis_server: RedisServer, use_streams: bool) -> None:
    broker = RedisBroker(redis_server.url, prefix=f"e{secrets.token_hex(4)}", use_streams=use_streams)
    async with KernelSpace(message_bus=MessageBus(broker), audit_topic=None) as kernel:
        first = await kernel.elect_leader("lead", ttl=5)
        assert first
        await first.resign()
        second = await kernel.elect_leader("lead", ttl=5)
        assert second and (second.token or 0) > (first.token or 0)
