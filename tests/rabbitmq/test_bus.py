"""The bus on a real RabbitMQ: what each verb does there."""

from __future__ import annotations

import time
from itertools import pairwise

import anyio
import pytest
from amb_core import DeadLetterQueue, Message, MessageBus, Request
from amb_core.broker import Incoming, Outgoing, Settlement, Source
from amb_rabbitmq import RabbitMQBroker

from tests.core._help import Collector

pytestmark = pytest.mark.anyio


async def test_everybody_gets_what_is_published_and_a_group_shares_it(broker: RabbitMQBroker) -> None:
    everybody, members = Collector(), Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("agents.a", everybody)
        await bus.subscribe("agents.a", members, group="g")
        await bus.subscribe("agents.a", members, group="g")
        for n in range(20):
            await bus.publish("agents.a", n)
        await everybody.wait(20)
        await members.wait(20)
    assert everybody.data == list(range(20))
    assert sorted(members.data) == list(range(20))


async def test_wildcards_are_the_brokers_own(broker: RabbitMQBroker) -> None:
    got = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("logs.#.error", got)
        for topic in ("logs.error", "logs.a.error", "logs.a.b.error", "logs.xerror", "logs.error.x"):
            await bus.publish(topic, topic)
        await got.wait(3)
    assert {m.topic for m in got.messages} == {"logs.error", "logs.a.error", "logs.a.b.error"}


async def test_a_request_is_answered(broker: RabbitMQBroker) -> None:
    async with MessageBus(broker) as bus:

        @bus.responder("math")
        async def double(request: Request) -> int:
            return int(request.data) * 2

        await bus.connect()
        with anyio.fail_after(5):
            assert (await bus.request("math", 21)).data == 42


async def test_a_failure_is_retried_after_its_delay_and_ends_as_a_dead_letter(broker: RabbitMQBroker) -> None:
    times, letters = list[float](), Collector()

    async def fails(message: Message) -> None:
        times.append(time.monotonic())
        raise ValueError("never works")

    async with MessageBus(broker, dead_letter_queue=DeadLetterQueue("dead", max_retries=2)) as bus:
        await bus.subscribe("dead", letters)
        await bus.subscribe("jobs", fails, group="g", retry_delay=0.4)
        await bus.publish("jobs", {"x": 1}, headers={"h": "v"})
        await letters.wait()
    assert len(times) == 3
    assert all(later - sooner >= 0.36 for sooner, later in pairwise(times))
    assert letters.messages[0].data == {"x": 1}


async def test_a_delayed_message_comes_when_it_is_due_with_its_own_topic(broker: RabbitMQBroker) -> None:
    async with broker.connect() as connection:
        async with connection.open(Source(id="s", pattern="jobs.#", group="g")) as feed:
            due = time.time() + 0.35
            await connection.send([Outgoing("jobs.one", b"x", {"a": "b"}, key="k", not_before=due)])
            with anyio.fail_after(5):
                got = list[Incoming]()
                while not got:
                    got = list(await feed.receive(1))
            assert due <= time.time() < due + 3
            assert (got[0].topic, got[0].headers, got[0].key, got[0].attempt) == ("jobs.one", {"a": "b"}, "k", 1)
            await feed.settle([Settlement(got[0].token, "ack")])
