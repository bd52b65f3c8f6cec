"""Leadership within a process: one at a time, renewed, lost aloud, given up."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from amb_core import Capabilities, InMemoryBroker, MessageBus, UnsupportedError
from amb_core.broker import Connection
from amb_core.errors import AmbError, ConnectionLost, Unavailable
from amb_core.testing import TamperedBroker
from amb_kernel import AgentKernel, AuditRecord, KernelNotRunning, KernelSpace, Leadership, PolicyDenied

from ._help import Records, collecting, eventually, kernel_with

pytestmark = pytest.mark.anyio


async def test_of_many_candidates_one_leads_and_stays_the_leader() -> None:
    kernel, records = kernel_with()
    async with kernel:
        results = list[Leadership]()

        async def run(view: AgentKernel) -> None:
            results.append(await view.elect_leader("lead", ttl=4.0))

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(run, kernel.as_agent(f"a{number}"))
        assert sum(map(bool, results)) == 1
        await anyio.sleep(9.0)  # more than two times its length: it has been renewed
        assert sum(map(bool, results)) == 1
        assert not await kernel.elect_leader("lead", ttl=4.0)
        assert await kernel.elect_leader("another", ttl=4.0)
    assert sum(map(bool, results)) == 0
    assert len(records.of("leader.elected")) == len(records.of("leader.lost")) == 2
    assert records.of("leader.elected")[0].topic == "lead"


async def test_who_resigns_is_followed_at_once_by_who_waits() -> None:
    kernel, _ = kernel_with()
    async with kernel:
        first = await kernel.elect_leader("lead", ttl=30)
        assert first and first.token is not None and first.topic == "lead" and "is_leader=True" in repr(first)
        heirs = list[Leadership]()

        async def wait() -> None:
            heirs.append(await kernel.as_agent("heir").elect_leader("lead", ttl=30, wait=True))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(0.1)
            assert not heirs
            began = time.monotonic()
            await first.resign()
            assert not first
        assert time.monotonic() - began < 15
        await first.lost()
        assert heirs[0] and (heirs[0].token or 0) > first.token
        loser = await kernel.elect_leader("lead", ttl=1)
        assert not loser and loser.token is None
        await loser.lost()
        await loser.resign()


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has a clock that goes on")
async def test_a_machine_that_slept_finds_its_leader_deposed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, _ = kernel_with()
    async with kernel:
        leadership = await kernel.elect_leader("lead", ttl=30)
        assert leadership
        before = time.clock_gettime

        def after_an_hour(clock: int) -> float:
            return before(clock) + (3600 if clock == time.CLOCK_BOOTTIME else 0)

        monkeypatch.setattr(time, "clock_gettime", after_an_hour)
        assert not leadership


async def test_a_leadership_ends_with_its_agent() -> None:
    kernel, _ = kernel_with()
    won = list[Leadership]()

    @kernel.agent("leader")
    class Leader:
        async def run(self, view: AgentKernel) -> None:
            won.append(await view.elect_leader("lead", ttl=30))

    async with kernel:
        await eventually(lambda: won, "it is elected")
        await kernel.stop_agent("leader")
        assert not won[0]
        assert await kernel.elect_leader("lead", ttl=30)


async def test_who_cannot_renew_is_no_leader_after_its_time_and_says_so() -> None:
    """The bound: `ttl` from when the last renewal was asked for. Nobody has to tell it."""
    broker, records = _Forgetful(), Records()
    async with KernelSpace(message_bus=MessageBus(broker), audit_sink=records) as kernel:
        began = time.monotonic()
        leadership = await kernel.elect_leader("lead", ttl=0.5)
        broker.fails = True
        with anyio.fail_after(5):
            await leadership.lost()
        ended = time.monotonic() - began
        assert not leadership and not leadership.is_leader
        assert 0.4 < ended < 4, ended
        await eventually(lambda: records.of("leader.lost"), "the record")


async def test_who_was_replaced_learns_it_with_the_next_renewal() -> None:
    bus = MessageBus("memory")
    async with KernelSpace(message_bus=bus) as kernel:
        leadership = await kernel.elect_leader("lead", ttl=0.6)
        assert leadership.token is not None
        elections = await bus.elections()
        await elections.release("lead", leadership.token)
        assert await elections.acquire("lead", 30) is not None
        with anyio.fail_after(5):
            await leadership.lost()
        assert not leadership


async def test_a_bus_that_does_nothing_but_elect_hears_of_a_lost_connection() -> None:
    broker = _Forgetful(ConnectionLost("the network is gone"))
    async with MessageBus(broker) as bus:
        token = await (await bus.elections()).acquire("lead", 30)
        assert token is not None
        broker.fails = True
        with pytest.raises(ConnectionLost):
            await (await bus.elections()).renew("lead", token, 30)
        broker.fails = False
        await eventually(lambda: bus.stats.reconnects, "another connection")
        await (await bus.elections()).acquire("other", 30)


async def test_a_broker_that_cannot_elect_is_refused_before_it_is_reached() -> None:
    inner = InMemoryBroker()
    plain = Capabilities(**{**msgspec.structs.asdict(inner.capabilities), "elections": False})
    bus = MessageBus(TamperedBroker(inner, capabilities=plain))
    with pytest.raises(UnsupportedError, match=r"elections.*memory.*redis.* can"):
        await bus.elections()
    assert not bus.connected
    async with KernelSpace(message_bus=bus) as kernel:
        with pytest.raises(UnsupportedError, match="elections"):
            await kernel.elect_leader("lead")


async def test_who_may_not_send_to_the_topic_may_not_lead_it() -> None:
    kernel, records = kernel_with({"topic": "cluster.leader", "allow": ["coordinator"]})
    async with kernel:
        with pytest.raises(PolicyDenied):
            await kernel.as_agent("worker").elect_leader("cluster.leader", ttl=1)
        assert await kernel.as_agent("coordinator").elect_leader("cluster.leader", ttl=30)
        for topic, ttl in (("a.*", 1.0), ("a", 0), ("a", True)):
            with pytest.raises(ValueError):
                await kernel.elect_leader(topic, ttl)
    assert len(records.of("denied")) == 1


async def test_an_election_that_was_cancelled_leaves_no_leader() -> None:
    waits = anyio.Event()

    async def sink(record: AuditRecord) -> None:
        if record.event == "leader.elected" and not waits.is_set():
            waits.set()
            await anyio.sleep_forever()

    async with KernelSpace(audit_sink=sink) as kernel:
        async with anyio.create_task_group() as group:
            group.start_soon(kernel.elect_leader, "lead", 30)
            await waits.wait()
            group.cancel_scope.cancel()
        with anyio.fail_after(5):
            assert await kernel.elect_leader("lead", ttl=30, wait=True)


async def test_who_does_not_run_does_not_lead() -> None:
    kernel, _ = kernel_with()
    view = kernel.as_agent("early")
    for attempt in (view.elect_leader("lead"), view.subscribe("t", collecting())):
        with pytest.raises(KernelNotRunning, match="async with kernel"):
            await attempt
    await view.publish("t", 1)
    async with kernel:
        assert await view.elect_leader("lead")


class _Forgetful:
    """A broker in memory that can be made to fail at renewing."""

    def __init__(self, error: AmbError | None = None) -> None:
        self._inner, self.fails = InMemoryBroker(), False
        self._error = error or Unavailable("the network is gone")
        self.capabilities = self._inner.capabilities

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        async with self._inner.connect() as connection:
            renew = connection.renew  # type: ignore[attr-defined]

            async def failing(name: str, token: int, seconds: float) -> bool:
                if self.fails:
                    raise self._error
                return bool(await renew(name, token, seconds))

            connection.renew = failing  # type: ignore[attr-defined]
            yield connection
