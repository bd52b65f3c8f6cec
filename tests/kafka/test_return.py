"""A server that comes back finds its groups at work at once, not after the sessions of members that are gone."""

from __future__ import annotations

import time

import anyio.to_thread
import pytest
from amb_core import MessageBus
from amb_kafka import KafkaBroker

from tests.core._help import Collector
from tests.core._stopwatch import stopwatch
from tests.servers.kafka import KafkaServer

pytestmark = pytest.mark.anyio


async def test_consuming_goes_on_well_before_a_session_would_end(own_kafka_server: KafkaServer) -> None:
    seen, broker = Collector(), KafkaBroker(own_kafka_server.address)
    assert broker.session_timeout_ms >= 10_000
    async with MessageBus(broker) as consumer, MessageBus(broker, publish_timeout=60) as publisher:
        await consumer.subscribe("jobs", seen, group="workers")
        await publisher.publish("jobs", "before", wait_for_confirmation=True)
        await seen.wait(1, 20)
        await anyio.to_thread.run_sync(own_kafka_server.process.restart)
        async with stopwatch() as watch:
            began = time.monotonic()
            await publisher.publish("jobs", "after", wait_for_confirmation=True)
            await seen.wait(2, 30)
            assert watch.elapsed(began) < 6
        assert seen.data == ["before", "after"]
