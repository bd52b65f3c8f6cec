"""Ways past a policy that an agent could try with what it is given, and that lead nowhere."""

from __future__ import annotations

from enum import StrEnum
from secrets import token_hex
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus
from amb_kernel import AgentKernel, AuditRecord, Context, KernelSpace, Policy, PolicyDenied

from tests.servers.nats import NatsServer

from ._help import collecting, eventually, kernel_with

pytestmark = pytest.mark.anyio
ADMINS = {"topic": "commands", "allow": ["admin"]}


async def test_a_message_that_changes_while_it_is_checked_is_sent_as_it_was() -> None:
    checking, go_on = anyio.Event(), anyio.Event()

    async def sink(record: AuditRecord) -> None:
        if record.event == "sent":
            checking.set()
            await go_on.wait()

    rules: Any = [ADMINS, {"topic": "open", "audit": True}]
    async with KernelSpace([Policy("p", rules)], audit_sink=sink) as kernel, anyio.create_task_group() as group:
        secret, heard = collecting(), collecting()
        await kernel.subscribe("commands", secret)
        await kernel.subscribe("open", heard)
        message = Message("open", 1)
        group.start_soon(kernel.as_agent("bob").publish, message)
        await checking.wait()
        message.topic = "commands"
        go_on.set()
        await heard.wait()
    assert secret.messages == []


async def test_a_topic_is_what_its_letters_say() -> None:
    class Sly(str):
        __slots__ = ()

        def split(self, *arguments: Any) -> Any:
            return ["open"]

        def __eq__(self, other: object) -> bool:
            return other == "open"

        def __hash__(self) -> int:
            return hash("open")

        def __str__(self) -> str:
            return "open"

    class Double(Message):
        @property
        def topic(self) -> str:  # type: ignore[override]
            return "open"

    class Topics(StrEnum):
        OPEN = "open"

    kernel, records = kernel_with(ADMINS)
    async with kernel:
        bob, heard = kernel.as_agent("bob"), collecting()
        await kernel.subscribe("open", heard)
        for attempt in ({"topic": Sly("commands")}, {"topic_or_message": Sly("commands")}):
            with pytest.raises(PolicyDenied):
                await bob.publish(message=1, **attempt)
        with pytest.raises(PolicyDenied):
            await bob.request(Sly("commands"), 1)
        with pytest.raises(TypeError, match="Message itself"):
            await bob.publish(Double.__new__(Double))
        await bob.publish(Topics.OPEN, 1)
        await heard.wait()
    assert len(records.of("denied")) == 3


@pytest.mark.parametrize("name", ["kernel-roles", "Kernel-Roles"])
async def test_roles_cannot_be_given_to_oneself(name: str) -> None:
    kernel, _ = kernel_with(ADMINS)
    async with kernel:
        bob, heard = kernel.as_agent("bob"), collecting()
        await kernel.subscribe("t", heard)
        with pytest.raises(ValueError, match="kernel's"):
            await bob.publish("t", 1, headers={name: "admin"})
        await bob.publish(Message("t", 1, headers={name: "admin", "x": "y"}))
        (message,) = await heard.wait()
    assert message.headers == {"x": "y"}


async def test_a_filter_acts_as_the_agent() -> None:
    kernel, _ = kernel_with()
    sent, inbox = collecting(), collecting()

    async def tell() -> None:
        await kernel.publish("sent", 1)

    def passes(message: Message) -> bool:
        kernel.schedule(60.0)(tell)
        return True

    kernel.as_agent("bob").subscribe("t", filter=passes)(inbox)
    async with kernel:
        await kernel.subscribe("sent", sent)
        await kernel.publish("t", 1)
        await inbox.wait()
        (message,) = await sent.wait()
    assert message.sender == "bob"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_neither_filters_nor_handlers_get_a_client(nats_server: NatsServer) -> None:
    """NATS's own message has the connection it came by."""
    seen, topic = list[object](), f"t{token_hex(4)}"
    async with KernelSpace(message_bus=MessageBus(nats_server.url)) as kernel:

        def passes(message: Message) -> bool:
            seen.append(message.native)
            return True

        async def handler(message: Message) -> None:
            seen.append(message.native)

        await kernel.as_agent("bob").subscribe(topic, handler, filter=passes)
        await kernel.publish(topic, 1)
        await eventually(lambda: len(seen) == 2, lambda: f"{seen}")
    assert seen == [None, None]


async def test_an_agents_code_makes_no_agents_and_its_hooks_stay_its_own() -> None:
    """With the program's kernel in its hands, which it may use to send."""
    kernel, records = kernel_with({"topic": "commands", "allow": ["admin", "kernel"]})
    refused = list[str]()

    async def hook(message: Message, context: Context) -> None:
        try:
            await kernel.publish("commands", 1)
        except PolicyDenied as error:
            refused.append(str(error))

    @kernel.agent("bob")
    class Bob:
        async def run(self, view: AgentKernel) -> None:
            for make in (
                lambda: kernel.as_agent("admin"),
                lambda: kernel.register(name="admin")(hook),
                lambda: kernel.agent("admin")(type("Admin", (), {})),
            ):
                with pytest.raises(PolicyDenied, match="'bob' may not become or make 'admin'"):
                    make()
            kernel.message_validator("t")(hook)
            kernel.message_pipeline("t")(hook)

    inbox = collecting()
    async with kernel:
        await eventually(lambda: kernel.agents["bob"].state == "serving", lambda: f"{kernel.agents}")
        await kernel.subscribe("t", inbox)
        await kernel.publish("t", 1)
        await inbox.wait()
    assert len(refused) == 2 and all("'bob'" in text for text in refused)
    assert [record.agent for record in records.of("denied")] == ["bob"] * 5
