"""Leadership where the broker falls silent or crashes: a term outlives that, and tokens go on to grow."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from amb_core import MessageBus
from amb_core.errors import AmbError
from amb_kernel import KernelSpace

from ._candidates import BROKERS, TTL, running, settings_on
from ._help import eventually

pytestmark = pytest.mark.anyio
T = TypeVar("T")
RESTARTED = ["rabbitmq", "kafka", "sqs", "azure"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=RESTARTED)
def broker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(broker: str, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"own_{BROKERS[broker][0]}")


def _end(server: Any, broker: str) -> None:
    # The emulator of SQS forgets everything when it is killed; SQS itself does not.
    server.process.stop() if broker == "sqs" else server.process.kill()


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, once there is one."""
    with anyio.fail_after(60):
        while True:
            try:
                return await ask()
            except AmbError:
                await anyio.sleep(0.1)


@pytest.mark.parametrize("broker", [*BROKERS], indirect=True)
async def test_a_leader_whose_broker_is_silent_stops_to_lead_in_time(
    broker: str, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"AMB_{broker}_RESPONSE_TIMEOUT".upper(), "1")
    for name, value in settings_on(broker, server).items():
        monkeypatch.setenv(name, value)
    async with KernelSpace(message_bus=MessageBus(connect_timeout=20), audit_topic=None) as kernel:
        # A server that has just been started may need longer for its first answers.
        leadership = await _patiently(lambda: kernel.elect_leader("lead", ttl=4, wait=True))
        assert leadership
        server.process.freeze()
        try:
            await anyio.sleep(4)
            assert not leadership, "it believes longer than its ttl"
            with anyio.fail_after(15):
                await leadership.lost()
        finally:
            server.process.thaw()
        again = await _patiently(lambda: kernel.elect_leader("lead", ttl=4, wait=True))
        assert (again.token or 0) > (leadership.token or 0)


async def test_a_term_outlives_the_broker(broker: str, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings_on(broker, server).items():
        monkeypatch.setenv(name, value)
    leader, other = MessageBus(connect_timeout=5), MessageBus(connect_timeout=5)
    await _patiently(leader.connect)  # the server has just been started
    await _patiently(other.connect)
    async with leader, other:
        token = await (await leader.elections()).acquire("lead", 120)
        assert token is not None
        _end(server, broker)
        with pytest.raises(AmbError):
            await (await leader.elections()).renew("lead", token, 120)
        server.process.start()

        async def taken() -> int | None:
            return await (await other.elections()).acquire("lead", 120)

        async def renewed() -> bool:
            return await (await leader.elections()).renew("lead", token, 120)

        async def released() -> None:
            await (await leader.elections()).release("lead", token)

        assert await _patiently(taken) is None
        assert await _patiently(renewed)
        await _patiently(released)
        assert (await _patiently(taken) or 0) > token


async def test_never_two_leaders_while_the_broker_ends_and_comes_back(broker: str, server: Any, tmp_path: Path) -> None:
    with running(settings_on(broker, server), tmp_path) as candidates:
        for name in "ab":
            candidates.start(name)
        await eventually(lambda: candidates.leader, "the first leader", 60)
        _end(server, broker)
        ended = time.monotonic()
        await anyio.sleep(3 * TTL)
        late = [moment for moment, _, _ in candidates.beliefs() if moment > ended + TTL]
        assert not late, "somebody leads whom nobody can have elected"
        believed = len(candidates.beliefs())
        server.process.start()
        await eventually(lambda: len(candidates.beliefs()) > believed + 50, "the next leader", 60)
    assert len(candidates.check()) >= 2
