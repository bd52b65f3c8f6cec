"""A line that is cut while a member leaves whose handlers still run."""

from __future__ import annotations

import anyio
import pytest
from amb_core import Message, MessageBus
from amb_core.testing import FaultProxy, eventually

from ._stage import Stage

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

#: Elsewhere a delivery belongs to the line that it came over, and goes to the next member when that breaks.
LEASES_OUTLIVE_THE_LINE = ["nats-jetstream", "redis", "sqs"]
MESSAGES = 3


@pytest.mark.parametrize("rig", LEASES_OUTLIVE_THE_LINE, indirect=True)
async def test_what_runs_is_nobody_elses(stage: Stage) -> None:
    """Its lease is renewed over the next line, and its verdict told: an agent that is replaced in a bad moment does not
    do minutes of work for nothing."""
    assert stage.rig.address is not None and stage.rig.through is not None
    may_end, begun, again, publisher = anyio.Event(), list[object](), list[object](), await stage.bus()

    async def work(message: Message) -> None:
        begun.append(message.data)
        await may_end.wait()

    async with FaultProxy.to(*stage.rig.address) as proxy, anyio.create_task_group() as tasks:
        bus = MessageBus(stage.rig.through(proxy.host, proxy.port), drain_timeout=stage.patience)
        await bus.subscribe(stage.topic("jobs"), work, group="workers", concurrency=MESSAGES)
        await stage.publish(publisher, range(MESSAGES))
        await eventually(lambda: len(begun) == MESSAGES, "the handlers to run", stage.patience)
        tasks.start_soon(bus.disconnect)
        await eventually(lambda: bus.host.state == "stopping", "it has begun to leave")
        proxy.reset()
        await (await stage.bus()).subscribe(
            stage.topic("jobs"), lambda message: again.append(message.data), group="workers", in_thread=False
        )
        await stage.quiet()
        may_end.set()
    await stage.quiet()
    assert not again, "it ran again elsewhere"
