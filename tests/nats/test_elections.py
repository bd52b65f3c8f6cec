"""Elections on JetStream beside what the conformance kit asks of everybody."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from amb_core import MessageBus, UnsupportedError
from amb_nats import NatsBroker
from nats.aio.client import Client

from tests.core._help import eventually

pytestmark = pytest.mark.anyio


async def _stored(native: Client, stream: str) -> int:
    return (await native.jetstream().stream_info(f"{stream}_ELECTIONS")).state.messages


async def test_what_is_over_cannot_be_renewed_also_if_nobody_followed(stored: NatsBroker, native: Client) -> None:
    async with MessageBus(stored) as bus:
        elections = await bus.elections()
        token = await elections.acquire("lead", 1)
        assert token is not None
        with anyio.fail_after(10):
            while await _stored(native, stored.stream_name):
                await anyio.sleep(0.05)
            assert not await elections.renew("lead", token, 1)
            while (successor := await elections.acquire("lead", 1)) is None:
                await anyio.sleep(0.05)
        assert successor > token and not await elections.renew("lead", token, 1)


async def test_messages_and_elections_do_not_meet(stored: NatsBroker) -> None:
    """A name may be a topic too."""
    async with MessageBus(stored) as bus:
        seen: list[str] = []

        async def note(message: object) -> None:
            seen.append(message.topic)  # type: ignore[attr-defined]

        await bus.subscribe("#", note)
        assert await (await bus.elections()).acquire("lead", 30)
        await bus.publish("lead", 1)
        await eventually(lambda: seen, "the message")
        assert seen == ["lead"]


async def test_core_nats_refuses(stored: NatsBroker) -> None:
    core = msgspec.structs.replace(stored, jetstream=False, use_jetstream=False)
    bus = MessageBus(core)
    with pytest.raises(UnsupportedError, match="elections"):
        await bus.elections()
    assert not bus.connected
