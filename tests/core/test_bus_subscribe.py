"""Every spelling of subscribing and unsubscribing: live when it returns, gone when it returns."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus, Request, Subscription

from tests.core._help import Collector, eventually, stays

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus() as bus:
        yield bus


class Handlers:
    """A handler as each kind of callable."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def coroutine(self, message: Message) -> None:
        self.seen.append(message.data)

    def plain(self, message: Message) -> None:
        self.seen.append(message.data)

    def returns_awaitable(self, message: Message) -> Any:
        return self.coroutine(message)

    async def unannotated(self, msg: Any) -> None:
        self.seen.append(msg.data)

    async def request(self, request: Request) -> None:
        self.seen.append(request.data)

    async def with_default(self, message: Message, extra: int = 3) -> None:
        self.seen.append(message.data)

    async def variadic(self, *messages: Message) -> None:
        self.seen.extend(message.data for message in messages)

    async def bound(self, prefix: str, message: Message) -> None:
        self.seen.append(message.data)

    async def __call__(self, message: Message) -> None:
        self.seen.append(message.data)


KINDS: dict[str, Any] = {
    "coroutine": lambda h: h.coroutine,
    "plain": lambda h: h.plain,
    "returns an awaitable": lambda h: h.returns_awaitable,
    "unannotated": lambda h: h.unannotated,
    "request": lambda h: h.request,
    "extra default": lambda h: h.with_default,
    "variadic": lambda h: h.variadic,
    "partial": lambda h: functools.partial(h.bound, "p"),
    "callable object": lambda h: h,
    "lambda": lambda h: lambda msg: h.seen.append(msg.data),
    "built-in method": lambda h: _Unwrapping(h.seen).append,
}


class _Unwrapping(list[Any]):
    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self._seen = seen

    def append(self, message: Any) -> None:
        self._seen.append(message.data)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_every_kind_of_callable_is_a_handler(bus: MessageBus, kind: Any) -> None:
    handlers = Handlers()
    await bus.subscribe("t", kind(handlers))
    await bus.publish("t", 1)
    await eventually(lambda: handlers.seen == [1], "the message")


async def test_a_documented_lambda_collects_messages_that_equal_their_data(bus: MessageBus) -> None:
    received: list[Any] = []
    await bus.subscribe("t", lambda msg: received.append(msg))
    await bus.publish("t", {"value": 42})
    await eventually(lambda: received, "the message")
    assert received == [{"value": 42}]


async def test_a_synchronous_handler_runs_in_a_thread_unless_it_must_not(bus: MessageBus) -> None:
    threads: dict[str, int] = {}
    await bus.subscribe("t", lambda msg: threads.update(default=threading.get_ident()))
    await bus.subscribe("t", lambda msg: threads.update(inline=threading.get_ident()), in_thread=False)
    await bus.publish("t", 1)
    await eventually(lambda: len(threads) == 2, "both")
    assert threads["inline"] == threading.get_ident() != threads["default"]


async def test_a_subscription_is_its_id_and_knows_what_it_is_for(bus: MessageBus) -> None:
    subscription = await bus.subscribe("a.*", Collector(), group="g")
    other = await bus.subscribe("a.*", Collector(), group="g")
    assert isinstance(subscription, str) and isinstance(subscription, Subscription)
    assert (subscription.pattern, subscription.group) == ("a.*", "g")
    assert subscription != other and len({subscription, other}) == 2


async def test_a_subscription_is_live_when_subscribe_returns(bus: MessageBus) -> None:
    for number in range(20):
        collector = Collector()
        await bus.subscribe(f"t{number}", collector)
        await bus.publish(f"t{number}", number)
        await collector.wait()


async def test_a_decorated_handler_stays_callable_and_is_live_before_the_next_publish(bus: MessageBus) -> None:
    seen: list[Any] = []

    @bus.subscriber("t")
    async def handler(message: Message) -> None:
        seen.append(message.data)

    await bus.publish("t", 1)
    await handler(Message("t", 2))
    await eventually(lambda: sorted(seen) == [1, 2], "both")


async def test_one_handler_may_be_decorated_for_several_topics(bus: MessageBus) -> None:
    collector = Collector()
    bus.subscriber("a")(bus.subscriber("b")(collector))
    await bus.publish("a", 1)
    await bus.publish("b", 2)
    await collector.wait(2)
    assert sorted(collector.data) == [1, 2]


async def test_several_handlers_of_one_topic_each_get_every_message(bus: MessageBus) -> None:
    one, two = Collector(), Collector()
    await bus.subscribe("t", one)
    await bus.subscribe("t", two)
    await bus.publish("t", 1)
    await one.wait()
    await two.wait()


@pytest.mark.parametrize("name", ["group", "consumer_group"])
async def test_members_of_a_group_share_its_messages(bus: MessageBus, name: str) -> None:
    members = [Collector() for _ in range(3)]
    options: dict[str, Any] = {name: "g"}
    for member in members:
        await bus.subscribe("t", member, **options)
    for number in range(30):
        await bus.publish("t", number)
    await eventually(lambda: sum(len(member.messages) for member in members) == 30, "thirty messages")
    assert sorted(data for member in members for data in member.data) == list(range(30))


async def test_groups_of_different_names_each_get_every_message(bus: MessageBus) -> None:
    one, two = Collector(), Collector()
    await bus.subscribe("t", one, group="one")
    await bus.subscribe("t", two, group="two")
    await bus.publish("t", 1)
    await one.wait()
    await two.wait()


@pytest.mark.parametrize("by", ["subscription", "id", "topic", "handler", "method"])
async def test_unsubscribing_takes_a_subscription_an_id_a_topic_or_a_handler(bus: MessageBus, by: str) -> None:
    collector, other = Collector(), Collector()
    subscription = await bus.subscribe("t", collector)
    await bus.subscribe("u", other)
    if by == "method":
        await subscription.unsubscribe()
    else:
        named = {"subscription": subscription, "id": str(subscription), "topic": "t", "handler": collector}
        await bus.unsubscribe(named[by])  # type: ignore[arg-type]
    await bus.publish("t", 1)
    await bus.publish("u", 2)
    await other.wait()
    assert collector.messages == []


async def test_unsubscribing_a_topic_ends_all_its_subscriptions_and_no_other(bus: MessageBus) -> None:
    ended, kept = Collector(), Collector()
    await bus.subscribe("t", ended)
    bus.subscriber("t")(ended)
    await bus.subscribe("*", kept)
    await bus.unsubscribe("t")
    await bus.publish("t", 1)
    await kept.wait()
    assert ended.messages == []


async def test_a_bound_method_and_a_wrapped_function_can_be_named_again(bus: MessageBus) -> None:
    handlers = Handlers()
    await bus.subscribe("t", handlers.coroutine)
    await bus.unsubscribe(handlers.coroutine)
    await bus.publish("t", 1)
    await stays(lambda: handlers.seen == [], "a message after unsubscribing", 0.1)


async def test_unsubscribing_what_is_not_subscribed_is_an_error(bus: MessageBus) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        await bus.unsubscribe("nowhere")


async def test_unsubscribing_waits_for_a_handler_that_runs(bus: MessageBus) -> None:
    begun, finished = anyio.Event(), list[int]()

    async def slow(message: Message) -> None:
        begun.set()
        await anyio.sleep(0.1)
        finished.append(1)

    await bus.subscribe("t", slow)
    await bus.publish("t", 1)
    await begun.wait()
    await bus.unsubscribe("t")
    assert finished == [1]


async def test_an_unsubscribed_declared_handler_does_not_return_after_reconnecting() -> None:
    bus, collector = MessageBus(), Collector()
    bus.subscriber("t")(collector)
    async with bus:
        await bus.unsubscribe(collector)
    async with bus:
        await bus.publish("t", 1)
    assert collector.messages == []


async def test_a_paused_subscription_leaves_its_messages_on_the_broker_until_it_resumes(bus: MessageBus) -> None:
    collector = Collector()
    subscription = await bus.subscribe("t", collector, group="g")
    subscription.pause()
    assert subscription.health().paused
    await bus.publish("t", 1)
    await stays(lambda: not collector.messages, "a message while paused", 0.1)
    subscription.resume()
    await collector.wait()
    assert collector.messages[0].attempt == 1


@pytest.mark.parametrize("group", [None, "g"])
async def test_concurrency_is_a_true_bound_and_can_be_changed(bus: MessageBus, group: str | None) -> None:
    running, most, done = 0, 0, 0

    async def handler(message: Message) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await anyio.sleep(0.005)
        running, done = running - 1, done + 1

    subscription = await bus.subscribe("t", handler, group=group, concurrency=3)
    for number in range(30):
        await bus.publish("t", number)
    await eventually(lambda: done == 30, "thirty")
    assert most == 3
    subscription.set_concurrency(6)
    for number in range(30):
        await bus.publish("t", number)
    await eventually(lambda: done == 60, "thirty more")
    assert most == 6
