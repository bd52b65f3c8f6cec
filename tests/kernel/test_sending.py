"""Sending through the kernel: refused aloud, recorded, limited, and always under one's own name."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from amb_core import AccessDenied, Message
from amb_kernel import AgentKernel, AuditFailed, AuditRecord, KernelSpace, Policy, PolicyDenied, RateLimited
from amb_kernel._rates import Limiter
from amb_kernel._rulebook import Rulebook

from ._help import collecting, eventually, kernel_with

pytestmark = pytest.mark.anyio
ADMINS = {"topic": "commands", "allow": ["admin"]}


async def test_a_denied_send_raises_and_is_recorded_and_sends_nothing() -> None:
    kernel, records = kernel_with(ADMINS)
    async with kernel:
        inbox = collecting()
        await kernel.subscribe("commands", inbox)
        with pytest.raises(PolicyDenied, match=r"'bob'.*allows only admin") as denied:
            await kernel.as_agent("bob").publish("commands", 1)
        with pytest.raises(PolicyDenied):
            await kernel.as_agent("bob").request("commands", 1)
        await kernel.as_agent("admin").publish("commands", 2)
        await inbox.wait()
    assert inbox.data == [2]
    assert isinstance(denied.value, AccessDenied) and isinstance(denied.value, PermissionError)
    assert [(record.agent, record.topic, record.rule) for record in records.of("denied")] == [
        ("bob", "commands", "rule 1 ('commands') of policy 'test'")
    ] * 2
    assert records.of("denied")[0].kernel_id == kernel.kernel_id


async def test_a_request_is_a_send() -> None:
    kernel, _ = kernel_with(ADMINS)

    @kernel.subscribe("commands")
    async def answer(message: Message) -> int:
        return int(message.data) + 1

    async with kernel:
        assert (await kernel.as_agent("admin").request("commands", 1, timeout=5)).data == 2


async def test_the_sender_is_always_the_agent() -> None:
    kernel, _ = kernel_with()
    async with kernel:
        inbox = collecting()
        await kernel.subscribe("t", inbox)
        bob = kernel.as_agent("bob", roles=["clerk"])
        await bob.publish("t", 1)
        await bob.publish(Message("t", 2, sender="admin", headers={"kernel-roles": "admin", "x": "y"}))
        await bob.publish(topic="t", data=3, headers={"a": "b"})
        messages = await inbox.wait(3)
        for refused in ({"sender": "admin"}, {"headers": {"kernel-roles": "admin"}}):
            with pytest.raises(ValueError, match=r"own name|kernel's"):
                await bob.publish("t", 4, **refused)
    assert [(m.data, m.sender, m.headers.pop("kernel-roles"), m.headers) for m in messages] == [
        (1, "bob", "clerk", {}),
        (2, "bob", "clerk", {"x": "y"}),
        (3, "bob", "clerk", {"a": "b"}),
    ]


async def test_a_rate_limit_is_exact_under_concurrency() -> None:
    """As many senders at once as there are, exactly as many get through as the rule says; each agent by itself."""
    kernel, records = kernel_with({"topic": "status.*", "rate_limit": "100/minute"})
    sent: dict[str, int] = {"a": 0, "b": 0}

    async def send(view: AgentKernel, number: int) -> None:
        try:
            await view.publish(f"status.{number % 7}", number)
        except RateLimited as limited:
            assert 0 < limited.retry_after <= 60
        else:
            sent[view.name] += 1

    async with kernel:
        inbox = collecting()
        await kernel.subscribe("status.*", inbox)
        async with anyio.create_task_group() as group:
            for view in (kernel.as_agent("a"), kernel.as_agent("b")):
                for number in range(400):
                    group.start_soon(send, view, number)
        await inbox.wait(200)
    assert sent == {"a": 100, "b": 100}
    assert len(inbox.messages) == 200
    assert len(records.of("rate_limited")) == 600


def test_a_rate_limit_holds_in_every_stretch_of_time() -> None:
    now = 0.0
    limiter = Limiter(lambda: now)
    bounds = Rulebook([Policy("p", [{"topic": "t", "rate_limit": "10/second"}])], "allow").limited("t")  # type: ignore[arg-type]
    passed: list[float] = []
    for step in range(500):
        now = step * 0.013
        if limiter.take(bounds, "a") is None:
            passed.append(now)
    assert all(later - earlier >= 1.0 for earlier, later in zip(passed, passed[10:], strict=False))
    # And no more is refused than has to be.
    assert len(passed) >= 10 * int(now)


async def test_a_send_that_is_refused_uses_up_no_rate() -> None:
    kernel, _ = kernel_with(
        {"topic": "t.#", "rate_limit": "2/day"},
        {"topic": "t.x", "rate_limit": "1/day"},
        {"topic": "t.no", "deny": ["a"]},
    )
    async with kernel:
        a = kernel.as_agent("a")
        with pytest.raises(PolicyDenied):
            await a.publish("t.no", 1)
        await a.publish("t.x", 1)
        with pytest.raises(RateLimited, match=r"t\.x.*1/day"):
            await a.publish("t.x", 2)
        await a.publish("t.y", 1)
        with pytest.raises(RateLimited, match="2/day"):
            await a.publish("t.y", 2)


async def test_audited_sends_are_recorded_before_they_are_sent() -> None:
    kernel, records = kernel_with({"topic": "system.#", "allow": ["system"], "audit": True})
    async with kernel:
        heard = collecting()
        await kernel.subscribe("kernel.audit", heard)
        await kernel.as_agent("system").publish("system.boot", 1)
        await kernel.as_agent("system").publish("other", 1)
        await eventually(lambda: any(data["event"] == "sent" for data in heard.data), lambda: f"{heard.data}")
    [sent] = records.of("sent")
    assert (sent.agent, sent.topic, sent.rule) == ("system", "system.boot", "rule 1 ('system.#') of policy 'test'")
    [published] = [data for data in heard.data if data["event"] == "sent"]
    assert published["topic"] == "system.boot" and published["agent"] == "system" and published["time"] == sent.time


async def test_what_cannot_be_recorded_is_not_sent() -> None:
    broken = ["disk full"]

    async def sink(record: AuditRecord) -> None:
        if record.event in ("sent", "denied") and broken:
            raise OSError(broken[0])

    rule = {"topic": "system.#", "allow": ["system"], "audit": True}
    kernel = KernelSpace([Policy("p", [rule])], audit_sink=sink)  # type: ignore[arg-type]
    async with kernel:
        inbox = collecting()
        await kernel.subscribe("system.#", inbox)
        with pytest.raises(AuditFailed, match="disk full"):
            await kernel.as_agent("system").publish("system.boot", 1)
        with pytest.raises(PolicyDenied):  # refused all the same
            await kernel.as_agent("bob").publish("system.boot", 2)
        broken.clear()
        await kernel.as_agent("system").publish("system.boot", 3)
        await inbox.wait()
    assert inbox.data == [3]


async def test_only_the_kernel_writes_to_the_audit_topic() -> None:
    kernel, _ = kernel_with(audit_topic="records")
    async with kernel:
        for view in (kernel, kernel.as_agent("a")):
            with pytest.raises(PolicyDenied, match="only the kernel"):
                await view.publish("records", {"event": "sent"})


async def test_the_kernel_itself_is_under_its_policies() -> None:
    kernel, _ = kernel_with(ADMINS)
    async with kernel:
        with pytest.raises(PolicyDenied, match="'kernel'"):
            await kernel.publish("commands", 1)
    trusted, _ = kernel_with(ADMINS, name="boss", roles=["admin"])
    async with trusted:
        await trusted.publish("commands", 1)


@pytest.mark.parametrize("arguments", [(), (None, 1), (7, 1), ("a.*", 1), ("_amb.x", 1)])
async def test_a_topic_that_cannot_be_sent_to_is_refused_first(arguments: Any) -> None:
    kernel, records = kernel_with({"topic": "#", "deny": ["*"]})
    async with kernel:
        with pytest.raises((TypeError, ValueError)):
            await kernel.publish(*arguments)
    assert records.of("denied") == []
