"""Every option of the broker does what it says."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import anyio
import pytest
from amb_core import MessageBus
from amb_core.errors import ConfigurationError, MessageTooLarge, NotFound
from amb_sqs import AWSSQSBroker, SQSBroker
from amb_sqs import _queues as queues_module

from tests.core._help import Collector, eventually

from .conftest import Make, Native

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"endpoint_url": "localhost:4566"}, "must look like https://"),
        ({"endpoint_url": "http://localhost:port"}, "port"),
        ({"sns_endpoint_url": "sqs://eu-west-1"}, "sns_endpoint_url"),
        ({"queue_prefix": "a.b"}, "queue_prefix"),
        ({"sns_topic_prefix": "x" * 40}, "sns_topic_prefix"),
        ({"aws_access_key_id": "AKIA"}, "or neither"),
        ({"client_options": {"retries": {}}}, "retries"),
        ({"queue_url": "https://x/1/q", "queue_name": "q"}, "not both"),
        ({"queue_name": "q", "use_sns_fanout": True}, "no fan-out"),
        ({"priority_lanes": True, "use_fifo": True}, "priority_lanes"),
        ({"content_based_deduplication": True}, "use_fifo"),
        ({"max_receive_count": 3}, "dlq_arn"),
        ({"dlq_arn": "agent-os-dlq"}, "arn:aws:sqs"),
        ({"visibility_timeout": 0}, "visibility_timeout"),
        ({"wait_time_seconds": 21}, "wait_time_seconds"),
        ({"max_number_of_messages": 11}, "max_number_of_messages"),
        ({"message_retention": 59}, "message_retention"),
        ({"discovery_interval": -1}, "discovery_interval"),
        ({"response_timeout": 0}, "response_timeout"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        SQSBroker(**options)


def test_the_documented_spellings() -> None:
    broker = SQSBroker(
        region_name="us-east-1",
        queue_prefix="agent-os-",
        visibility_timeout=30,
        wait_time_seconds=20,
        max_number_of_messages=10,
        use_fifo=True,
        content_based_deduplication=True,
        dlq_arn="arn:aws:sqs:us-east-1:123456789:agent-os-dlq",
        max_receive_count=3,
        aws_access_key_id="AKIA...",
        aws_secret_access_key="wrong-secret",
    )
    assert "wrong-secret" not in repr(broker) and "AKIA" not in repr(broker)
    bus = MessageBus(broker)
    assert bus.dead_letter_queue is not None
    assert (bus.dead_letter_queue.topic, bus.dead_letter_queue.max_retries) == ("agent-os-dlq", 2)
    assert AWSSQSBroker(region_name="us-east-1", queue_name="agent-messages", use_fifo=True).one_queue


@pytest.mark.parametrize(
    ("options", "region", "endpoint"),
    [
        ({"endpoint_url": "https://sqs.eu-west-1.amazonaws.com"}, "eu-west-1", "https://sqs.eu-west-1.amazonaws.com"),
        ({"endpoint_url": "sqs://eu-west-1"}, "eu-west-1", None),
        ({"endpoint_url": "http://localhost:4566"}, "us-east-1", "http://localhost:4566"),
        ({"endpoint_url": "http://localhost:4566", "region_name": "eu-x-1"}, "eu-x-1", "http://localhost:4566"),
        ({"region_name": "eu-x-1"}, "eu-x-1", None),
        ({}, None, None),
    ],
)
def test_the_region_is_found(options: dict[str, Any], region: str | None, endpoint: str | None) -> None:
    broker = SQSBroker(**options)
    assert (broker.region, broker.endpoint) == (region, endpoint)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMB_BROKER", "sqs")
    monkeypatch.setenv("AMB_SQS_REGION", "eu-west-1")
    monkeypatch.setenv("AMB_SQS_ENDPOINT_URL", "http://localhost:4566")
    monkeypatch.setenv("AMB_SQS_WAIT_TIME_SECONDS", "7")
    assert MessageBus().broker == SQSBroker("http://localhost:4566", "eu-west-1", wait_time_seconds=7)
    named = MessageBus(broker="sqs", broker_url="https://sqs.us-east-1.amazonaws.com").broker
    assert isinstance(named, SQSBroker) and named.region == "us-east-1"


async def test_queues_have_prefix_and_attributes(make: Make, native: Native, prefix: str) -> None:
    bus = MessageBus(make(visibility_timeout=7, message_retention=600))
    async with bus:
        await bus.subscribe("orders.created", Collector(), group="billing")
        name = f"{prefix}orders_created-_billing"
        assert name in await native.queues()
        found = await native.attributes(name)
        assert (found["VisibilityTimeout"], found["MessageRetentionPeriod"]) == ("7", "600")
    async with MessageBus(make(visibility_timeout=9, message_retention=600)) as bus:
        await bus.subscribe("orders.created", Collector(), group="billing")
        assert (await native.attributes(name))["VisibilityTimeout"] == "9"


async def test_a_group_that_names_none(make: Make, native: Native, prefix: str) -> None:
    async with MessageBus(make(consumer_group="everybody")) as bus:
        await bus.subscribe("jobs", Collector())
        assert f"{prefix}jobs-_everybody" in await native.queues()


async def test_long_names_are_found_by_their_tags(broker: SQSBroker, native: Native) -> None:
    pattern = "a-very-long-word." * 8 + "*"
    seen, alone = Collector(), Collector()
    async with MessageBus(broker) as bus, MessageBus(broker) as publisher:
        await bus.subscribe(pattern, seen, group="a group with a long name")
        await bus.subscribe(pattern, alone)
        assert all(len(name) <= 80 for name in await native.queues())
        await publisher.publish(pattern.replace("*", "x"), 1)
        await seen.wait()
        await alone.wait()


async def test_queues_of_one_subscriber_go_with_it(broker: SQSBroker, native: Native, prefix: str) -> None:
    async with MessageBus(broker) as bus:
        subscription = await bus.subscribe("news", Collector())
        bus.responder("ask")(lambda message: message.data)
        await bus.connect()
        assert (await bus.request("ask", 5, timeout=10)).data == 5
        kinds = [re.sub("[0-9a-f]{20}$", "", name.removeprefix(prefix)) for name in await native.queues()]
        assert sorted(kinds) == ["-_-_i", "ask-_-_a", "news-_-_a"]
        await bus.unsubscribe(subscription)
        assert len(await native.queues()) == 2
    assert await native.queues() == []


async def test_queues_of_killed_subscribers_are_swept_up(
    broker: SQSBroker, native: Native, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amb_sqs._feed.PULSE", 0.3)
    monkeypatch.setattr(queues_module, "FORGOTTEN", 4.0)
    await native.sqs.create_queue(QueueName=f"{prefix}news-_-_a0123", tags={"amb-alive": str(int(time.time()) - 10)})
    await native.sqs.create_queue(QueueName=f"{prefix}news-_workers", tags={"amb-alive": "0"})
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("news", seen)
        with anyio.fail_after(20):
            while f"{prefix}news-_-_a0123" in await native.queues():
                await anyio.sleep(0.1)
        assert f"{prefix}news-_workers" in await native.queues()
        await anyio.sleep(5)  # longer than a queue is kept whose subscriber does not say that it is there
        await bus.publish("news", 1)
        await seen.wait()


async def test_auto_create_off(make: Make, native: Native, prefix: str) -> None:
    await native.make(f"{prefix}jobs-_workers")
    seen = Collector()
    async with MessageBus(make(auto_create=False)) as bus:
        await bus.subscribe("jobs", seen, group="workers")
        await bus.publish("jobs", 1)
        await seen.wait()
        with pytest.raises(NotFound, match="-other-_workers"):
            await bus.subscribe("other", seen, group="workers")
        with pytest.raises(NotFound, match="without a group"):
            await bus.subscribe("jobs", seen)
        with pytest.raises(NotFound, match="other"):
            await bus.publish("other", 1)


async def test_a_dead_letter_is_kept_though_nobody_reads(broker: SQSBroker, native: Native, prefix: str) -> None:
    async with MessageBus(broker, dead_letter_queue="dead") as bus:
        await bus.subscribe("jobs", Collector(RuntimeError("fails on purpose")), group="g", retries=0)
        await bus.publish("jobs", 1)
        with anyio.fail_after(20):
            while f"{prefix}dead-_amb_dlq" not in await native.queues() or not await native.count(
                f"{prefix}dead-_amb_dlq"
            ):
                await anyio.sleep(0.1)
        letters = Collector()
        await bus.subscribe("dead", letters, group="amb.dlq")
        (letter,) = await letters.wait()
        assert letter.dead is not None and letter.dead.topic == "jobs"


async def test_priority_lanes(make: Make, native: Native, prefix: str) -> None:
    broker = make(priority_lanes=True, visibility_timeout=30)
    order: list[Any] = []
    async with MessageBus(broker) as bus, MessageBus(broker) as publisher:
        subscription = await bus.subscribe("jobs", lambda message: order.append(message.data), group="g", concurrency=1)
        assert f"{prefix}jobs-_g-_x" in await native.queues()
        subscription.pause()
        await anyio.sleep(1.5)  # the polls that were open have ended
        for number in range(20):
            await publisher.publish("jobs", number, priority="low")
        await publisher.publish("jobs", "now", priority="critical")
        subscription.resume()
        await eventually(lambda: len(order) == 21, lambda: f"{order}", 20)
    assert "now" in order[:3], order


async def test_an_envelope_beyond_the_limit(broker: SQSBroker) -> None:
    async with MessageBus(broker) as bus:
        with pytest.raises(MessageTooLarge, match="'big'"):
            await bus.publish("big", "x" * 700_000, headers={"h": "x" * 500_000})


async def test_options_for_botocore_reach_it(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "botocore")
    async with MessageBus(make(client_options={"user_agent": "my-agents"})):
        pass
    assert "my-agents" in caplog.text
