"""Asking many: scatter returns at max or at the deadline, request_first takes the first good answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus, NoResponders, RemoteError, Request, RequestTimeout

from tests.core._help import Collector, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus() as bus:
        yield bus


def voter(vote: str, delay: float = 0.0, error: Exception | None = None, when: anyio.Event | None = None) -> Any:
    async def answer(request: Request) -> dict[str, str]:
        await anyio.sleep(delay)
        if when is not None:
            await when.wait()
        if error is not None:
            raise error
        return {"vote": vote}

    return answer


def votes(responses: list[Message]) -> list[str]:
    return sorted(response.data["vote"] for response in responses)


async def test_scatter_returns_as_soon_as_max_have_answered(bus: MessageBus) -> None:
    for number in range(5):
        bus.responder("vote")(voter(str(number)))
    begin = time.monotonic()
    responses = await bus.scatter("vote", {"p": 1}, timeout=30, max_responses=3)
    assert len(responses) == 3 and time.monotonic() - begin < 5


async def test_scatter_without_max_returns_everybody_at_the_deadline(bus: MessageBus) -> None:
    for number in range(3):
        bus.responder("vote")(voter(str(number)))
    bus.responder("vote")(voter("late", when=(over := anyio.Event())))
    begin = time.monotonic()
    assert votes(await bus.scatter(topic="vote", message={}, timeout=1)) == ["0", "1", "2"]
    assert 0.95 < time.monotonic() - begin < 2.7
    over.set()


async def test_scatter_below_min_raises_with_the_partial_responses(bus: MessageBus) -> None:
    bus.responder("vote")(voter("yes"))
    with pytest.raises(TimeoutError, match="1 of at least 3 responses from 'vote'") as caught:
        await bus.scatter("vote", {}, timeout=1, min_responses=3, max_responses=10)
    assert isinstance(caught.value, RequestTimeout) and votes(caught.value.responses) == ["yes"]


async def test_scatter_with_nobody_there_is_empty_or_too_few(bus: MessageBus) -> None:
    assert await bus.scatter("nobody", {}, timeout=30) == []
    with pytest.raises(TimeoutError, match="0 of at least 1"):
        await bus.scatter("nobody", {}, timeout=30, min_responses=1)


async def test_failed_responders_count_as_no_answer(bus: MessageBus) -> None:
    bus.responder("vote")(voter("yes"))
    bus.responder("vote")(voter("", error=LookupError("no")))
    assert votes(await bus.scatter("vote", {}, timeout=1)) == ["yes"]


async def test_one_answer_a_group_comes_to_a_scatter(bus: MessageBus) -> None:
    bus.responder("vote", group="a")(voter("a"))
    bus.responder("vote", group="a")(voter("a"))
    bus.responder("vote", group="b")(voter("b"))
    assert votes(await bus.scatter("vote", {}, timeout=1)) == ["a", "b"]


@pytest.mark.parametrize(("low", "high"), [(3, 2), (0, 0), (0, -1)])
async def test_scatter_refuses_bounds_that_cannot_be(bus: MessageBus, low: int, high: int) -> None:
    with pytest.raises(ValueError, match="max_responses"):
        await bus.scatter("vote", {}, min_responses=low, max_responses=high)


async def test_the_first_good_answer_wins_whoever_gives_it(bus: MessageBus) -> None:
    bus.responder("primary")(voter("primary", when=(over := anyio.Event())))
    bus.responder("backup")(voter("backup"))
    reply = await bus.request_first(topics=["primary", "backup"], message={"q": 1}, timeout=10)
    assert reply.data == {"vote": "backup"}
    over.set()


async def test_an_error_does_not_win_while_another_may_answer(bus: MessageBus) -> None:
    bus.responder("primary")(voter("", error=LookupError("down")))
    bus.responder("backup")(voter("backup", delay=0.1))
    assert (await bus.request_first(["primary", "backup"], {}, timeout=10)).data == {"vote": "backup"}


async def test_a_topic_without_responders_does_not_spoil_the_others(bus: MessageBus) -> None:
    bus.responder("backup")(voter("backup"))
    assert (await bus.request_first(["nobody", "backup"], {}, timeout=10)).data == {"vote": "backup"}


async def test_when_all_fail_the_error_is_raised_at_once(bus: MessageBus) -> None:
    bus.responder("one")(voter("", error=LookupError("one")))
    bus.responder("two")(voter("", error=LookupError("two")))
    begin = time.monotonic()
    with pytest.raises(RemoteError, match="LookupError"):
        await bus.request_first(["one", "two", "nobody"], {}, timeout=30)
    assert time.monotonic() - begin < 5


async def test_when_nobody_is_there_it_is_told_at_once(bus: MessageBus) -> None:
    with pytest.raises(NoResponders):
        await bus.request_first(["nobody", "no.one"], {}, timeout=30)


async def test_when_nobody_answers_the_error_names_the_topics(bus: MessageBus) -> None:
    await bus.subscribe("a", Collector())
    await bus.subscribe("b", Collector())
    with pytest.raises(TimeoutError, match=r"'a', 'b' within 0\.1 s"):
        await bus.request_first(["a", "b"], {}, timeout=0.1)


async def test_the_losers_late_answers_are_counted_and_dropped(bus: MessageBus) -> None:
    bus.responder("fast")(voter("fast"))
    bus.responder("slow")(voter("slow", delay=0.1))
    await bus.request_first(["fast", "slow"], {}, timeout=10)
    await eventually(lambda: bus.stats.late_replies == 1, "the late reply")


@pytest.mark.parametrize("topics", [[], "agents.query", ()])
async def test_request_first_takes_a_list_of_topics(bus: MessageBus, topics: Any) -> None:
    with pytest.raises(TypeError, match="list of topics"):
        await bus.request_first(topics, {})
