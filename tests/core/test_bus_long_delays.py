"""Delays the broker does not have are refused; what failed without a group is put back for those without a group."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import msgspec
import pytest
from amb_core import InMemoryBroker, MessageBus
from amb_core.broker import Capabilities, Connection

pytestmark = pytest.mark.anyio


class Impatient:
    """The memory broker, but for delays above a minute."""

    def __init__(self) -> None:
        self._broker = InMemoryBroker()

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(self._broker.capabilities, max_delay=60.0)

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        return self._broker.connect()


async def test_publishing_with_a_delay_beyond_the_brokers_is_refused() -> None:
    async with MessageBus(Impatient()) as bus:
        await bus.publish("jobs", 1, delay=60)
        with pytest.raises(ValueError, match="at most 60 s, not 61 s"):
            await bus.publish("jobs", 1, delay=61)
    assert bus.stats.published == 1


async def test_a_dead_letter_of_a_subscription_without_a_group_goes_to_those_without_one() -> None:
    got: list[str] = []
    async with MessageBus(dead_letter_queue="failed") as bus:

        async def once(message: object) -> None:
            got.append("none")
            if got.count("none") == 1:
                raise ValueError("unlucky")

        await bus.subscribe("orders", once, retries=0)
        await bus.subscribe("orders", lambda message: got.append("shop"), group="shop", in_thread=False)
        async with bus.stream("failed") as failed:
            await bus.publish("orders", 1)
            await anext(failed)
        assert await bus.retry_dead_letters() == 1
    assert sorted(got) == ["none", "none", "shop"]
