"""Three servers that keep a stream together: one dies, all restart in turn, none can decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import anyio
import nats
import pytest
from amb_core import Message, MessageBus
from amb_core.errors import BrokerUnavailable
from amb_nats import NatsBroker
from nats import errors as native
from nats.js import errors as native_stream
from nats.js.api import StreamInfo

from tests.core._help import Collector, eventually
from tests.servers.nats import NatsCluster
from tests.servers.process import answers_on

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.fixture
def broker(nats_cluster: NatsCluster, word: str) -> NatsBroker:
    return NatsBroker(
        servers=list(nats_cluster.urls), jetstream=True, stream_name=word, subject_prefix=word,
        stream_replicas=3, lease=3.0, response_timeout=2.0,
    )  # fmt: skip


@pytest.fixture
def bus(broker: NatsBroker) -> MessageBus:
    return MessageBus(broker, connect_timeout=30, publish_timeout=20)


@pytest.fixture(autouse=True)
def all_up(nats_cluster: NatsCluster) -> Iterator[None]:
    """The cluster is for all tests: each leaves it as it was."""
    yield
    for url, process in zip(nats_cluster.urls, nats_cluster.processes, strict=True):
        if not answers_on(int(url.rpartition(":")[2])):
            process.start()


async def _publish(bus: MessageBus, numbers: range) -> None:
    """Publish every number, with an id of its own, until it is accepted."""
    for number in numbers:
        accepted = False
        while not accepted:
            try:
                await bus.publish(Message("jobs", number, id=f"{number}"), wait_for_confirmation=True)
                accepted = True
            except BrokerUnavailable:
                continue
        await anyio.sleep(0.005)


async def _stream(cluster: NatsCluster, name: str, enough: Callable[[StreamInfo], bool]) -> StreamInfo:
    """What the cluster says of a stream, as soon as that is enough."""
    info, deadline = None, anyio.current_time() + 30
    client = await nats.connect(list(cluster.urls), error_cb=_silent, reconnect_time_wait=0.1)
    try:
        while anyio.current_time() < deadline:
            try:
                info = await client.jetstream(timeout=1).stream_info(name)
                if enough(info):
                    return info
            except (native.Error, native_stream.Error):
                continue
            await anyio.sleep(0.1)
    finally:
        await client.close()
    raise AssertionError(f"the last that was heard of the stream: {info and (info.state, info.cluster)}")


async def _silent(error: Exception) -> None:
    """nats-py prints what nobody takes."""


def _whole(info: StreamInfo) -> bool:
    """It has a leader, and both others are up to date."""
    found = info.cluster
    ready = [replica for replica in (found.replicas or ()) if replica.current and not replica.offline] if found else []
    return found is not None and bool(found.leader) and len(ready) == 2


async def test_the_leader_dies_while_messages_flow(
    nats_cluster: NatsCluster, broker: NatsBroker, bus: MessageBus, word: str
) -> None:
    assert broker.capabilities.confirm == "replicated"
    seen, enough, sent = Collector(), anyio.Event(), 0

    async def publish() -> None:
        nonlocal sent
        while not enough.is_set():
            await _publish(bus, range(sent, sent + 10))
            sent += 10

    async with bus:
        await bus.subscribe("jobs", seen, group="g")
        async with anyio.create_task_group() as group:
            group.start_soon(publish)
            await eventually(lambda: len(seen.data) >= 50, "nothing comes", 20)
            info = await _stream(nats_cluster, word, _whole)
            assert info.cluster is not None and info.cluster.leader is not None
            leader = nats_cluster.processes[int(info.cluster.leader.removeprefix("n"))]
            await anyio.to_thread.run_sync(leader.kill)
            before = len(seen.data)
            await eventually(lambda: len(seen.data) > before + 20, "it does not go on with two servers", 30)
            enough.set()
        await eventually(lambda: set(seen.data) == set(range(sent)), "some were lost", 30)
        await _stream(nats_cluster, word, lambda info: info.state.messages == sent)


async def test_all_are_restarted_one_after_the_other(nats_cluster: NatsCluster, bus: MessageBus, word: str) -> None:
    seen, stop, sent = Collector(), anyio.Event(), 0

    async def publish() -> None:
        nonlocal sent
        while not stop.is_set():
            await _publish(bus, range(sent, sent + 10))
            sent += 10

    async with bus:
        await bus.subscribe("jobs", seen, group="g")
        async with anyio.create_task_group() as group:
            group.start_soon(publish)
            for process in nats_cluster.processes:
                before = len(seen.data)
                await eventually(lambda: len(seen.data) > before + 20, "it does not go on", 30)  # noqa: B023
                await _stream(nats_cluster, word, _whole)
                await anyio.to_thread.run_sync(process.stop)
                await anyio.to_thread.run_sync(process.start)
            await _stream(nats_cluster, word, _whole)
            stop.set()
        await eventually(lambda: set(seen.data) == set(range(sent)), "some were lost", 30)
        await _stream(nats_cluster, word, lambda info: info.state.messages == sent)


async def test_a_publish_waits_until_somebody_can_decide_and_is_stored_once(
    nats_cluster: NatsCluster, bus: MessageBus, word: str
) -> None:
    """Without a leader the server answers 503 or not at all; the second try has the same Nats-Msg-Id."""
    async with bus:
        await bus.publish("jobs", "before", wait_for_confirmation=True)
        await _stream(nats_cluster, word, _whole)
        for process in nats_cluster.processes[:2]:
            await anyio.to_thread.run_sync(process.kill)
        async with anyio.create_task_group() as group:
            group.start_soon(_publish, bus, range(3))
            await anyio.sleep(3)
            for process in nats_cluster.processes[:2]:
                await anyio.to_thread.run_sync(process.start)
        info = await _stream(nats_cluster, word, lambda info: info.state.messages >= 4)
        assert info.state.messages == 4
