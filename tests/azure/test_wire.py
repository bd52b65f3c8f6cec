"""Names, filters and messages: pure functions, and the same through the unpatched client."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from amb_azure import AzureServiceBusBroker
from amb_azure._wire import rules, session_of, subscription
from amb_core import MessageBus
from amb_core.broker import Source
from amb_core.topics import compile_pattern
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.management import CorrelationRuleFilter, SqlRuleFilter

from tests.core._help import Collector, eventually

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("orders.*", "amb_topic LIKE 'orders.%' ESCAPE '!'"),
        ("orders.#", "amb_topic LIKE 'orders%' ESCAPE '!'"),
        ("a.#.b", "amb_topic LIKE 'a%b' ESCAPE '!'"),
        ("#", "amb_topic LIKE '%' ESCAPE '!' AND amb_topic NOT LIKE '!_amb.%' ESCAPE '!'"),
        ("o'k.50%._x!.*", "amb_topic LIKE 'o''k.50!%.!_x!!.%' ESCAPE '!'"),
    ],
)
def test_a_pattern_is_a_filter(pattern: str, text: str) -> None:
    made = rules("name", pattern)["topic"]
    assert isinstance(made, SqlRuleFilter) and made.sql_expression == text


def test_a_topic_is_a_correlation_filter_and_a_pattern_too_long_for_sql_is_left_to_the_client() -> None:
    plain = rules("name", "orders.new")["topic"]
    assert isinstance(plain, CorrelationRuleFilter) and plain.properties == {"amb_topic": "orders.new"}
    long = rules("name", "*." + "'" * 500)["topic"]
    assert isinstance(long, SqlRuleFilter) and long.sql_expression == "amb_topic IS NOT NULL"


def test_names_differ_where_groups_do_and_fit() -> None:
    sources = [
        Source(id="1", pattern="a", group="g"), Source(id="1", pattern="a", group="G"),
        Source(id="1", pattern="b", group="g"), Source(id="1", pattern="a", group="g", ordered_by="key"),
        Source(id="1", pattern="a"), Source(id="2", pattern="a"), Source(id="1", pattern="a", group="ü/ " * 40),
    ]  # fmt: skip
    names = [subscription(source) for source in sources]
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name) <= 50 and name.replace("-", "").isascii() for name in names)
    assert names == [subscription(source) for source in sources]


def test_equal_keys_share_a_session() -> None:
    assert session_of("k", 8, 1) == session_of("k", 8, 2)
    assert {session_of(None, 8, spread) for spread in range(8)} == {str(number) for number in range(8)}


TOPICS = ["x.a", "x.a.b", "x", "xa", "x.A", "x.a_b", "x.acb", "x.50%", "x.50c", "x.o'k", "x.[a]", "x.a.c.b"]


@pytest.mark.parametrize("pattern", ["x.*", "x.#", "x.*.b", "x.#.b", "x.a_b", "x.50%", "x.o'k", "x.[a]", "*.a"])
async def test_a_filter_lets_through_all_that_matches_and_the_rest_is_completed(
    broker: AzureServiceBusBroker, admin: ServiceBusAdministrationClient, topic: str, pattern: str
) -> None:
    """Through the service and the core, nothing else is handled, and what is filtered does not pile up."""
    seen, last = Collector(), Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{topic}.{pattern}", seen, group=topic)
        await bus.subscribe(f"{topic}.last", last)
        await bus.publish_batch([_message(f"{topic}.{name}") for name in TOPICS])
        await bus.publish(f"{topic}.last", 1)
        await last.wait()
        matches = compile_pattern(pattern)
        expected = sorted(name for name in TOPICS if matches(name))
        await eventually(lambda: sorted(seen.data) == expected, lambda: f"{expected}, got {sorted(seen.data)}")
        name = subscription(Source(id="", pattern=f"{topic}.{pattern}", group=topic))

        async def empty() -> bool:
            counts = await admin.get_subscription_runtime_properties(broker.topic_name, name)
            return counts.active_message_count == 0

        for _ in range(100):
            if await empty():
                break
            await anyio.sleep(0.05)
        assert await empty(), "what does not match stays in the subscription"


def _message(name: str) -> Any:
    from amb_core import Message

    return Message(topic=name, payload=name.partition(".")[2])


async def test_a_header_named_like_one_of_our_properties_stays_a_header(
    broker: AzureServiceBusBroker, topic: str
) -> None:
    headers = {"amb_topic": "elsewhere", "amb_to": "x", "amb_user_amb_key": "y", "amb_attempts": "7"}
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(topic, seen)
        await bus.publish(topic, 1, headers=headers, key="k")
        (message,) = await seen.wait()
    assert (message.topic, message.key, message.attempt, message.headers) == (topic, "k", 1, headers)


async def test_what_foreign_producers_put_into_properties_and_bodies_arrives_as_text(
    broker: AzureServiceBusBroker, native: ServiceBusClient, topic: str
) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    properties: Any = {"amb_topic": topic, "count": 7, "when": moment, "yes": True}
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(topic, seen)
        async with native.get_topic_sender(broker.topic_name) as sender:
            await sender.send_messages(
                ServiceBusMessage(json.dumps([1]), application_properties=properties, session_id="s1")
            )
        (message,) = await seen.wait()
    assert message.data == [1] and message.key == "s1"
    assert message.headers == {"count": "7", "when": str(int(moment.timestamp() * 1000)), "yes": "True"}
