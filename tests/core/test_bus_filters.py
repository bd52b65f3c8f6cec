"""Filters hold messages back: acknowledged and counted, and no failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from amb_core import Message, MessageBus, MessageFilter, MessagePriority

from tests.core._help import DLQ, Collector, eventually

pytestmark = pytest.mark.anyio
Sent = dict[str, Any]

CASES: list[tuple[Callable[[Message], bool], Sent, Sent]] = [
    (
        MessageFilter(headers={"priority": "high"}),
        {"data": 1, "headers": {"priority": "high"}},
        {"data": 2, "headers": {"priority": "low"}},
    ),
    (MessageFilter(headers={"priority": "high"}), {"data": 1, "priority": MessagePriority.HIGH}, {"data": 2}),
    (MessageFilter(headers={"a": "1", "b": "2"}), {"data": 1, "headers": {"a": "1", "b": "2", "c": "3"}},
     {"data": 2, "headers": {"a": "1"}}),
    (MessageFilter(headers={"sender": "me"}), {"data": 1, "sender": "me"}, {"data": 2, "sender": "you"}),
    (MessageFilter(data_match={"status": "error"}), {"data": {"status": "error", "x": 1}}, {"data": {"status": "ok"}}),
    (MessageFilter(data_match={"status": "error"}), {"data": {"status": "error"}}, {"data": "no mapping"}),
    (MessageFilter(data_match={"a": {"b": [1]}}), {"data": {"a": {"b": [1], "c": 2}}}, {"data": {"a": {"b": [2]}}}),
    (MessageFilter(data_match={"n": None}), {"data": {"n": None}}, {"data": {}}),
    (MessageFilter(data_match={"n": 1}), {"data": {"n": 1}}, {"data": {"n": True}}),
    (MessageFilter(headers={"h": "1"}, data_match={"n": 1}), {"data": {"n": 1}, "headers": {"h": "1"}},
     {"data": {"n": 1}}),
    (lambda msg: bool(msg.data.get("agent_id") == "agent-001"), {"data": {"agent_id": "agent-001"}},
     {"data": {"agent_id": "agent-002"}}),
    (lambda msg: msg.data["n"], {"data": {"n": 1}}, {"data": {"n": 0}}),
]  # fmt: skip


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize(("filter", "passes", "held"), CASES)
async def test_a_filter_lets_through_what_matches_and_acknowledges_the_rest(
    filter: Callable[[Message], bool], passes: Sent, held: Sent, group: str | None
) -> None:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        collector = Collector()
        await bus.subscribe("t", collector, filter=filter, group=group)
        await bus.publish("t", **held)
        await bus.publish("t", **passes)
        await collector.wait()
        await eventually(lambda: bus.stats.acked == 2, "both to be acknowledged")
    assert collector.data == [passes["data"]]
    assert (bus.stats.filtered, bus.stats.failed, bus.stats.dead_lettered) == (1, 0, 0)


async def test_an_empty_filter_lets_everything_through() -> None:
    async with MessageBus() as bus:
        collector = Collector()
        await bus.subscribe("t", collector, filter=MessageFilter())
        await bus.publish("t", 1)
        await collector.wait()


async def test_changing_the_dict_afterwards_does_not_change_the_filter() -> None:
    wanted = {"status": "error"}
    filter = MessageFilter(data_match=wanted)
    wanted["status"] = "ok"
    assert filter(Message("t", {"status": "error"})) and not filter(Message("t", {"status": "ok"}))


async def test_what_a_headers_filter_holds_back_is_not_even_decoded() -> None:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        collector = Collector()
        await bus.subscribe("t", collector, filter=MessageFilter(headers={"kind": "mine"}))
        outgoing = bus.publisher.compose("t", 1)
        outgoing.body = b"not JSON"
        await bus.publisher.send(outgoing)
        await bus.publish("t", 2, headers={"kind": "mine"})
        await collector.wait()
    assert bus.stats.failed == 0


@pytest.mark.parametrize(
    "arguments", [{"headers": {"a": 1}}, {"headers": ["a"]}, {"data_match": "status"}, {"headers": {1: "a"}}]
)
def test_a_filter_that_cannot_work_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="MessageFilter"):
        MessageFilter(**arguments)


async def test_a_filter_must_be_callable() -> None:
    with pytest.raises(TypeError, match="MessageFilter or a function"):
        await MessageBus().subscribe("t", Collector(), filter={"status": "error"})
