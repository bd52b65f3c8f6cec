"""Leaving a broker that ends with its last connection: what is left is finished, or named."""

from __future__ import annotations

import logging

import pytest
from amb_core import MessageBus, RetryPolicy

from tests.core._help import Collector

pytestmark = pytest.mark.anyio


async def test_leaving_waits_for_the_next_try_of_a_group_that_ends_here() -> None:
    collector = Collector(ValueError("not yet"), failures=2)
    policy = RetryPolicy(max_retries=3, initial_delay=0.1, jitter=0)
    async with MessageBus(retry_policy=policy) as bus:
        await bus.subscribe("t", collector, group="g")
        await bus.publish("t", "once")
    assert [message.attempt for message in collector.messages] == [1, 2, 3]
    assert (bus.stats.acked, bus.stats.dropped) == (1, 0)


async def test_what_nobody_will_handle_any_more_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async with MessageBus() as bus:
        await bus.unsubscribe(await bus.subscribe("t", Collector(), group="away"))
        await bus.publish("t", 1)
        await bus.publish("t", 2)
    lost = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lost == ["2 message(s) in the queue of group 'away' on 't' are gone with the memory broker"]
