"""Before a message is delivered: policy, then validators, then pipelines."""

from __future__ import annotations

from typing import Any

import pytest
from amb_core import Message, MessageBus, RemoteError, RetryPolicy
from amb_kernel import Context, KernelNotRunning, KernelSpace, MessageRefused, Policy, PolicyDenied

from tests.core._help import DLQ, dead_letters

from ._help import Records, collecting, eventually, kernel_with

pytestmark = pytest.mark.anyio


async def test_validators_come_before_pipelines_and_both_before_the_handler() -> None:
    kernel, _ = kernel_with()
    steps: list[Any] = []

    @kernel.message_pipeline("t.#")
    async def double(msg: Message, context: Context) -> Any:
        steps.append(("double", msg.data))
        return msg.data * 2

    @kernel.message_pipeline("t.*")
    async def look(msg: Message, context: Context) -> None:
        steps.append(("look", msg.data))

    @kernel.message_validator("t.x")
    async def validate(msg: Message, context: Context) -> bool:
        steps.append(("validate", msg.data))
        return True

    @kernel.subscribe("t.x")
    async def handle(msg: Message) -> None:
        steps.append(("handle", msg.data))

    async with kernel:
        await kernel.publish("t.x", 21)
        await eventually(lambda: len(steps) == 4, lambda: f"{steps}")
    assert steps == [("validate", 21), ("double", 21), ("look", 42), ("handle", 42)]


@pytest.mark.parametrize("verdict", [False, ValueError("too short")])
async def test_what_a_validator_refuses_is_not_delivered_not_tried_again_and_recorded(verdict: Any) -> None:
    records, calls = Records(), []
    bus = MessageBus("memory", dead_letter_queue=DLQ, retry_policy=RetryPolicy(max_retries=5, initial_delay=0.01))
    kernel = KernelSpace(message_bus=bus, audit_sink=records)

    @kernel.message_validator("commands")
    async def check(msg: Message, context: Context) -> bool:
        calls.append(msg.data)
        if isinstance(verdict, Exception) and msg.data == "bad":
            raise verdict
        return bool(msg.data != "bad")

    async with kernel:
        inbox = collecting()
        await kernel.subscribe("commands", inbox)
        dead = await dead_letters(bus)
        await kernel.publish("commands", "bad")
        await kernel.publish("commands", "good")
        [letter] = await dead.wait()
        await inbox.wait()
        with pytest.raises(RemoteError, match="refused") as failed:
            await kernel.request("commands", "bad", timeout=5)
    assert calls == ["bad", "good", "bad"] and inbox.data == ["good"]
    assert letter.dead is not None and "refused" in letter.dead.error and letter.dead.attempts == 1
    assert failed.value.type == MessageRefused.__name__
    assert [record.topic for record in records.of("refused")] == ["commands"] * 2


async def test_what_came_past_the_kernel_is_held_against_the_policy_too() -> None:
    """Somebody who writes to the broker directly says who he is, or is nobody."""
    bus, records = MessageBus("memory"), Records()
    policy = Policy("p", [{"topic": "commands", "allow": ["admin"]}])  # type: ignore[arg-type]
    async with KernelSpace([policy], bus, audit_sink=records) as kernel:
        inbox = collecting()
        await kernel.subscribe("commands", inbox)
        await bus.publish("commands", 1)
        await bus.publish("commands", 2, sender="bob")
        await bus.publish("commands", 3, sender="admin")
        await kernel.as_agent("bob", roles=["admin"]).publish("commands", 4)
        await inbox.wait(2)
        await eventually(lambda: len(records.of("refused")) == 2, "two refusals")
    assert inbox.data == [3, 4]
    assert {record.agent for record in records.of("refused")} == {"", "bob"}


async def test_a_pipeline_that_fails_is_tried_again_like_a_handler() -> None:
    bus = MessageBus("memory", retry_policy=RetryPolicy(max_retries=3, initial_delay=0.01))
    kernel, failures = KernelSpace(message_bus=bus), [OSError("once"), OSError("twice")]

    @kernel.message_pipeline("t")
    async def flaky(msg: Message, context: Context) -> str:
        if failures:
            raise failures.pop()
        return "through"

    async with kernel:
        inbox = collecting()
        await kernel.subscribe("t", inbox)
        await kernel.publish("t", 1)
        await inbox.wait()
    assert inbox.data == ["through"] and not failures


async def test_on_message_gets_a_context_that_records_and_escalates() -> None:
    kernel, records = kernel_with({"topic": "alerts.#", "allow": ["kernel"]})
    ids: list[str] = []

    @kernel.on_message("agents.*.error")
    async def handle(msg: Message, context: Context) -> None:
        ids.append(context.kernel_id)
        await context.audit_log({"event": "agent_error", "error": msg.data})
        await context.escalate("alerts.critical", {"source": msg.topic})

    async with kernel:
        alerts = collecting()
        await kernel.subscribe("alerts.critical", alerts)
        await kernel.as_agent("a").publish("agents.a.error", {"code": 7})
        [alert] = await alerts.wait()
    assert ids == [kernel.kernel_id]
    assert alert.data == {"source": "agents.a.error"} and alert.sender == "kernel" and alert.priority.name == "CRITICAL"
    [logged] = records.of("agent_error")
    assert logged.agent == "a" and logged.topic == "agents.a.error" and logged.message_id
    assert logged.detail == {"event": "agent_error", "error": {"code": 7}}
    assert [record.detail["to"] for record in records.of("escalated")] == ["alerts.critical"]


async def test_an_observer_does_not_answer_for_others() -> None:
    kernel, _ = kernel_with()

    @kernel.subscribe("ask.#")
    async def watch(msg: Message) -> str:
        return "from the watcher"

    @kernel.on_message("ask.me")
    async def react(msg: Message, context: Context) -> str:
        return "from the reaction"

    @kernel.subscribe("ask.me", answers=False)
    async def silent(msg: Message) -> str:
        return "from the silent one"

    @kernel.subscribe("ask.me")
    async def answer(msg: Message) -> str:
        return "from the responder"

    @kernel.subscribe("many.*", answers=True)
    async def many(msg: Message) -> str:
        return msg.topic

    async with kernel:
        for _ in range(5):
            assert (await kernel.request("ask.me", 1, timeout=5)).data == "from the responder"
        assert (await kernel.request("many.x", 1, timeout=5)).data == "many.x"


async def test_a_denied_subscription_is_refused_and_recorded() -> None:
    kernel, records = kernel_with({"topic": "secret.#", "deny": ["guest"]}, {"topic": "secret.#", "allow": ["boss"]})
    async with kernel:
        guest, bob = kernel.as_agent("guest"), kernel.as_agent("bob")
        with pytest.raises(PermissionError, match="may not subscribe"):
            await guest.subscribe("secret.plans", collecting())
        with pytest.raises(PermissionError):
            guest.subscribe("#")(collecting())
        await bob.subscribe("secret.plans", collecting())  # only deny refuses subscribing
        await eventually(lambda: len(records.of("denied")) == 2, "two records")
    assert [record.topic for record in records.of("denied")] == ["secret.plans", "#"]


async def test_unsubscribing_takes_the_id_the_topic_or_the_handler() -> None:
    kernel, _ = kernel_with()
    async with kernel:
        inboxes = [collecting() for _ in range(4)]
        subscription = await kernel.subscribe("t", inboxes[0])
        await kernel.as_agent("other").subscribe("t", inboxes[3])
        kernel.subscribe("t")(inboxes[1])
        kernel.subscribe("u")(inboxes[2])
        await kernel.unsubscribe(subscription)
        await kernel.unsubscribe(inboxes[1])
        await kernel.unsubscribe("u")
        with pytest.raises(ValueError, match="no subscription"):
            await kernel.unsubscribe("v")
        await kernel.publish("t", 1)
        await kernel.publish("u", 1)
        await inboxes[3].wait()
    assert [len(inbox.messages) for inbox in inboxes] == [0, 0, 0, 1]


async def test_handlers_that_cannot_be_governed_are_refused() -> None:
    kernel, _ = kernel_with()

    async def typed(order: int) -> None: ...
    async def two(msg: Message, other: object) -> None: ...
    def sync(msg: Message) -> None: ...

    for wrong in (typed, two, sync):
        with pytest.raises(TypeError):
            kernel.subscribe("t")(wrong)
    with pytest.raises(TypeError, match="context"):
        kernel.on_message("t")(typed)
    with pytest.raises(TypeError, match="async def"):
        kernel.message_validator("t")(sync)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one by one"):
        kernel.subscribe("t", ack_mode="batch")(collecting())
    with pytest.raises(ValueError):
        kernel.message_pipeline("a..b")(two)


async def test_what_is_declared_before_the_start_begins_with_each_start() -> None:
    kernel, _ = kernel_with()
    inbox = collecting()
    kernel.subscribe("t")(inbox)
    for number in range(3):
        async with kernel:
            await kernel.publish("t", number)
            await inbox.wait(number + 1)
        with pytest.raises(KernelNotRunning, match="async with"):
            await kernel.publish("t", -1)
    assert inbox.data == [0, 1, 2]


async def test_the_first_verb_starts_the_kernel_and_a_bus_of_the_users_stays_his() -> None:
    async with MessageBus("memory") as bus:
        kernel, inbox = KernelSpace(message_bus=bus), collecting()
        kernel.subscribe("t")(inbox)
        await kernel.publish("t", 1)
        await inbox.wait()
        await kernel.stop()
        await bus.publish("t", 2)
        assert bus.connected
    assert inbox.data == [1]
    own = KernelSpace(message_bus=(later := MessageBus("memory")))
    async with own:
        assert later.connected
    assert not later.connected


async def test_records_are_not_about_records() -> None:
    """Neither a closed policy, nor who refuses or records everything, makes records of records."""
    kernel, records = kernel_with({"topic": "#", "allow": ["admin"]})
    seen: list[str] = []

    @kernel.message_validator("#")
    async def refuse(msg: Message, context: Context) -> bool:
        return False

    @kernel.on_message("#")
    async def everything(msg: Message, context: Context) -> None:
        seen.append(msg.topic)
        await context.audit_log({"event": "seen"})

    async with kernel:
        inbox = collecting()
        await kernel.subscribe("kernel.audit", inbox)
        await kernel.as_agent("admin").publish("t", 1)
        await eventually(lambda: records.of("refused"), "the refusal")
        await kernel.as_agent("admin").publish("t", 2)
        await eventually(lambda: len(records.of("refused")) == 2, "the second")
    assert [record.topic for record in records.of("refused")] == ["t", "t"]
    assert seen == [] and inbox.data == []


async def test_records_reach_who_names_their_topic_under_any_policy() -> None:
    kernel, records = kernel_with(default_action="deny")
    async with kernel:
        inbox, watcher = collecting(), collecting()
        await kernel.subscribe("kernel.audit", inbox)
        await kernel.subscribe("#", watcher)
        with pytest.raises(PolicyDenied):
            await kernel.publish("t", 1)
        await eventually(lambda: "denied" in [data["event"] for data in inbox.data], "the record")
    assert len(records.of("refused")) == 0 and watcher.data == []
