"""H: requests and replies."""

from __future__ import annotations

import gc
import time
from typing import Any

import anyio

from ... import Message, Response
from ...concurrency import new_future
from ...errors import BrokerUnavailable, NoResponders, RemoteError, RequestTimeout
from .._case import case
from .._leaks import open_descriptors
from .._target import Target
from .._wait import eventually


async def _echo(message: Message) -> Any:
    return message.data


@case("H1")
async def H1_each_gets_its_own_reply(t: Target) -> None:
    """A hundred requests at once: each gets its own reply, any value included."""
    bus, answers = t.bus(), dict[int, Any]()

    async def double(message: Message) -> Any:
        await anyio.sleep(0.01 * (message.data % 7))
        return message.data * 2

    async def ask(number: int) -> None:
        answers[number] = (await bus.request(t.topic("double"), number, timeout=t.patience)).data

    await t.answering(t.bus(), t.topic("double"), double, concurrency=20)
    await t.answering(bus, t.topic("echo"), _echo)
    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(ask, number)
    assert answers == {number: number * 2 for number in range(100)}, f"answers: {answers}"
    values: tuple[Any, ...] = (6, 0, "", False, [], {"a": None}, "ü")
    for value in values:
        got = (await bus.request(t.topic("echo"), value, timeout=t.patience)).data
        assert got == value and type(got) is type(value), f"{value!r} came back as {got!r}"


@case("H2")
async def H2_timeout(t: Target) -> None:
    """A request times out on time; its late reply is dropped, the responder was called once, nothing is left over."""
    free, bus = anyio.Event(), t.bus()

    async def slow(message: Message) -> str:
        await free.wait()
        return "late"

    seen = t.recorder("the responder", None, slow)
    await t.answering(t.bus(), t.topic("slow"), seen)
    await t.answering(bus, t.topic("echo"), _echo)
    await bus.request(t.topic("echo"), "warm", timeout=t.patience)
    began = time.monotonic()
    try:
        await bus.request(t.topic("slow"), 1, timeout=3.0)
    except RequestTimeout as error:
        assert isinstance(error, TimeoutError) and t.topic("slow") in str(error), f"the error is {error!r}"
    else:
        raise AssertionError("a request without a reply did not time out")
    took = time.monotonic() - began
    assert 2.9 <= took <= 5.0, f"a timeout of 3 s took {took:.2f} s"
    free.set()
    assert (await bus.request(t.topic("echo"), "next", timeout=t.patience)).data == "next", (
        "a late reply answered the next request"
    )
    await seen.stays_at(1, t.watch)
    assert len(seen.seen) == 1, f"the responder was called {len(seen.seen)} times"
    assert not bus.requests._asked, "a request that timed out is still remembered"


@case("H3", exclusive=True)  # somebody's subscription to "#" would be a consumer
async def H3_nobody_answers(t: Target) -> None:
    """Without a responder: NoResponders at once where the broker can tell, else a timeout."""
    bus = t.bus()
    await bus.connect()
    began = time.monotonic()
    try:
        await bus.request(t.topic("nobody"), 1, timeout=3.0)
    except NoResponders:
        assert t.capabilities.no_responders, "NoResponders, though the broker does not declare that it can tell"
        assert time.monotonic() - began < 2.5, "NoResponders came only with the timeout"
    except RequestTimeout:
        assert not t.capabilities.no_responders, "a timeout, though the broker declares that it can tell"
        assert 2.8 <= time.monotonic() - began <= 5.5, "the timeout of 3 s was not kept"
    else:
        raise AssertionError("a request to nobody was answered")


@case("H4")
async def H4_remote_errors(t: Target) -> None:
    """A responder's exception and reply.error() reach the caller at once, with type and text; four ways to answer."""
    bus, responding = t.bus(), t.bus()

    async def fail(message: Message) -> None:
        raise LookupError("nothing of that name")

    async def explicit(message: Message, reply: Response) -> None:
        await reply.error("explicitly refused")

    async def send(message: Message, reply: Response) -> None:
        await reply.send("sent")

    async def by_message(message: Message) -> None:
        await responding.reply(message, "by message")

    async def by_id(message: Message) -> None:
        await responding.reply(message.id, "by id")

    failing = t.recorder("the failing responder", None, fail)
    for word, handler in (
        ("fail", failing),
        ("explicit", explicit),
        ("send", send),
        ("message", by_message),
        ("id", by_id),
    ):
        responding.responder(t.topic(word), retries=3, retry_delay=0.05)(handler)
    responding.responder(t.topic("return"))(_echo)
    await responding.connect()
    for word, kind, text in (
        ("fail", "LookupError", "nothing of that name"),
        ("explicit", "Error", "explicitly refused"),
    ):
        began = time.monotonic()
        try:
            await bus.request(t.topic(word), 1, timeout=t.patience)
        except RemoteError as error:
            assert error.type == kind and text in error.text, f"the remote error is {error!r}"
            assert time.monotonic() - began < 5, "the error did not come at once"
        else:
            raise AssertionError(f"the responder on {word!r} failed, and the caller heard nothing of it")
    for word, wanted in (("send", "sent"), ("message", "by message"), ("id", "by id"), ("return", 5)):
        assert (await bus.request(t.topic(word), 5, timeout=t.patience)).data == wanted, (
            f"answering on {word!r} went wrong"
        )
    await failing.stays_at(1, t.watch)


@case("H5", needs="groups")
async def H5_a_group_answers_once(t: Target) -> None:
    """Of three grouped responders exactly one answers each request."""
    members = [t.recorder(f"responder {number}", "answerers", lambda message: message.data) for number in range(3)]
    for member in members:
        responding = t.bus()
        responding.responder(t.topic("ask"), "answerers")(member)
        await responding.connect()
    bus = t.bus()
    for number in range(30):
        assert (await bus.request(t.topic("ask"), number, timeout=t.patience)).data == number
    await anyio.sleep(t.watch)
    calls = sorted(data for member in members for data in member.data)
    assert calls == list(range(30)), f"30 requests were {len(calls)} calls"


@case("H6")
async def H6_scatter(t: Target) -> None:
    """scatter() stops at the maximum, returns what came in time, raises with the partial answers below the minimum."""

    async def never(message: Message) -> Any:
        await anyio.sleep(60)

    for number in range(4):
        responding = t.bus(drain_timeout=0.1)

        async def answer(message: Message, number: int = number) -> int:
            return number

        responding.responder(t.topic("ask"))(answer if number < 3 else never)
        await responding.connect()
    bus = t.bus()
    began = time.monotonic()
    three = await bus.scatter(t.topic("ask"), "all", timeout=t.patience, max_responses=3)
    assert time.monotonic() - began < t.patience / 2, "scatter() did not stop at its maximum"
    assert sorted(answer.data for answer in three) == [0, 1, 2], f"answers {[answer.data for answer in three]}"
    two = await bus.scatter(t.topic("ask"), "some", timeout=t.patience, max_responses=2)
    assert len(two) == 2, f"{len(two)} answers instead of at most 2"
    began = time.monotonic()
    some = await bus.scatter(t.topic("ask"), "wait", timeout=3.0, min_responses=2)
    assert 2.8 <= time.monotonic() - began <= 5.5 and len(some) == 3, (
        f"{len(some)} answers after {time.monotonic() - began:.2f} s"
    )
    try:
        await bus.scatter(t.topic("ask"), "more", timeout=3.0, min_responses=4)
    except RequestTimeout as error:
        assert sorted(answer.data for answer in error.responses) == [0, 1, 2], f"the error carries {error.responses}"
    else:
        raise AssertionError("three answers satisfied a minimum of four")
    assert await bus.scatter(t.topic("nobody"), 1, timeout=0.5) == [], "nobody answered something"


@case("H7")
async def H7_first_answer_wins(t: Target) -> None:
    """request_first() takes the first good answer and ignores the rest."""

    async def slow(message: Message) -> str:
        await anyio.sleep(6.0)
        return "slow"

    async def fast(message: Message) -> str:
        return "fast"

    async def fail(message: Message) -> str:
        raise RuntimeError("fails on purpose")

    responding, bus = t.bus(), t.bus()
    for word, handler in (("slow", slow), ("fast", fast), ("fail", fail)):
        responding.responder(t.topic(word))(handler)
    await responding.connect()
    await bus.connect()
    began = time.monotonic()
    first = await bus.request_first([t.topic("slow"), t.topic("fail"), t.topic("fast")], 1, timeout=t.patience)
    assert first.data == "fast" and time.monotonic() - began < 5.5, (
        f"{first.data!r} after {time.monotonic() - began:.2f} s"
    )
    second = await bus.request_first([t.topic("slow"), t.topic("fail")], 2, timeout=t.patience)
    assert second.data == "slow", f"the answer is {second.data!r}"
    try:
        await bus.request_first([t.topic("fail")], 3, timeout=t.patience)
    except RemoteError:
        return
    raise AssertionError("all responders failed, and request_first() did not")


@case("H8", exclusive=True, within=120)
async def H8_requests_leave_nothing_behind(t: Target) -> None:
    """10,000 requests: the number of futures, tasks and descriptors does not grow."""
    bus, total = t.bus(), t.scaled(10_000, 2_000)
    await t.answering(bus, t.topic("echo"), _echo, concurrency=50)
    kind = type(new_future())

    async def ask(count: int) -> None:
        for number in range(count):
            assert (await bus.request(t.topic("echo"), number, timeout=30)).data == number

    async def many(count: int) -> tuple[int, int]:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask, count // 20)
        gc.collect()
        return sum(isinstance(item, kind) for item in gc.get_objects()), open_descriptors()

    before, after = await many(400), await many(total)
    assert after[0] <= before[0] + 50, f"futures grew from {before[0]} to {after[0]}"
    assert after[1] <= before[1] + 2, f"descriptors grew from {before[1]} to {after[1]}"
    assert not bus.requests._asked, f"{len(bus.requests._asked)} requests are still remembered"


@case("H9", fixtures="proxy")
async def H9_requester_reconnects(t: Target) -> None:
    """The requester's connection is cut while it waits: a reply or a clean error, never somebody else's reply."""
    proxy, broker = await t.proxied()
    bus, outcomes = t.bus(broker, publish_timeout=5.0), dict[int, Any]()

    async def slow(message: Message) -> Any:
        await anyio.sleep(0.5)
        return message.data

    async def ask(number: int) -> None:
        try:
            outcomes[number] = (await bus.request(t.topic("slow"), number, timeout=5.0)).data
        except (RequestTimeout, BrokerUnavailable) as error:
            outcomes[number] = error

    await t.answering(t.bus(), t.topic("slow"), slow, concurrency=40)
    await bus.connect()
    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(ask, number)
        await anyio.sleep(0.2)
        proxy.reset()
    wrong = {
        number: value for number, value in outcomes.items() if value != number and not isinstance(value, Exception)
    }
    assert not wrong, f"replies of others: {wrong}"
    began = time.monotonic()
    while time.monotonic() - began < t.patience:
        await ask(99)
        if outcomes[99] == 99:
            return
    raise AssertionError("requests are not answered after the reconnect")


@case("H10")
async def H10_cancelling_a_request(t: Target) -> None:
    """Cancelling the task that waits for a reply leaves nothing behind."""
    bus, seen = t.bus(), t.recorder("the responder", None, lambda message: anyio.sleep(0.5))
    await t.answering(t.bus(), t.topic("slow"), seen)
    await t.answering(bus, t.topic("echo"), _echo)
    for _ in range(5):
        with anyio.move_on_after(0.1):
            await bus.request(t.topic("slow"), 1, timeout=30)
            raise AssertionError("a reply came too early")
    assert not bus.requests._asked, "cancelled requests are still remembered"
    assert (await bus.request(t.topic("echo"), "next", timeout=t.patience)).data == "next"


@case("H11")
async def H11_replying_to_the_dead(t: Target) -> None:
    """A reply to a requester that is gone raises nothing in the responder, which goes on."""
    free, done = anyio.Event(), list[Any]()

    async def answer(message: Message) -> Any:
        if message.data == "gone":
            await free.wait()
        done.append(message.data)
        return message.data

    responding, gone, bus = t.bus(), t.bus(), t.bus()
    seen = t.recorder("the responder", None, answer)
    responding.responder(t.topic("ask"))(seen)
    await responding.connect()

    async def ask() -> None:
        await gone.request(t.topic("ask"), "gone", timeout=2 * t.patience)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await seen.reaches(1, t.patience)
        group.cancel_scope.cancel()
    await gone.disconnect()
    free.set()
    await eventually(lambda: "gone" in done, "the responder did not finish", t.patience)
    assert (await bus.request(t.topic("ask"), "alive", timeout=t.patience)).data == "alive"
    assert responding.stats.failed == 0, "replying to a requester that is gone failed the handler"


@case("H12")
async def H12_trace_and_correlation(t: Target) -> None:
    """The user's correlation id is on request and reply; one trace goes through publish, handler, publish and reply."""
    bus, responding, inner = t.bus(), t.bus(), t.recorder("the inner handler")
    trace = "0af7651916cd43dd8448eb211c80319c"

    async def answer(message: Message) -> Any:
        await responding.publish(t.topic("inner"), 1)
        return [message.correlation_id, message.trace_id]

    await responding.subscribe(t.topic("inner"), inner)
    await t.answering(responding, t.topic("ask"), answer)
    got = await bus.request(t.topic("ask"), 1, timeout=t.patience, correlation_id="conversation-7", trace_id=trace)
    assert got.data == ["conversation-7", trace], f"the responder saw {got.data}"
    assert got.correlation_id == "conversation-7", f"the reply's correlation id is {got.correlation_id!r}"
    assert got.trace_id == trace, f"the reply's trace is {got.trace_id!r}"
    await inner.reaches(1, t.patience)
    assert inner.seen[0].message.trace_id == trace, (
        f"the trace of what the handler published is {inner.seen[0].message.trace_id!r}"
    )
    assert got.topic == t.topic("ask"), f"the reply's topic is {got.topic!r}"
