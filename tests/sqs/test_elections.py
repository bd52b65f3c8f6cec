"""Elections on SQS beside what the conformance kit asks of everybody."""

from __future__ import annotations

import anyio
import pytest
from amb_core import MessageBus, UnsupportedError
from amb_core.errors import NotFound
from amb_sqs import SQSBroker
from amb_sqs._names import Names

from tests.core._help import Collector

from .conftest import Make, Native

pytestmark = pytest.mark.anyio


async def test_a_message_too_old_for_a_term_makes_room_for_a_new_one(
    broker: SQSBroker, native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MessageBus(broker) as bus:
        elections = await bus.elections()
        with monkeypatch.context() as patch:
            patch.setattr("amb_sqs._elections._GOOD", -1)
            assert await elections.acquire("lead", 30) is None
        assert await elections.acquire("lead", 30)
        assert await elections.acquire("lead", 30) is None


async def test_a_term_ends_before_sqs_ends_it(broker: SQSBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQS hides a message for twelve hours at most, counted from when it was received."""
    monkeypatch.setattr("amb_sqs._elections.LONGEST", 2)
    async with MessageBus(broker) as bus:
        elections = await bus.elections()
        with pytest.raises(UnsupportedError, match=r"'lead'.*at most 2 s, not 3 s"):
            await elections.acquire("lead", 3)
        token = await elections.acquire("lead", 2)
        assert token is not None
        await anyio.sleep(0.1)
        assert not await elections.renew("lead", token, 2)
        await elections.release("lead", token)
        assert (await elections.acquire("lead", 2) or 0) > token


async def test_messages_and_elections_do_not_meet(broker: SQSBroker, native: Native) -> None:
    """A name may be a topic too, and everybody's pattern does not match it."""
    async with MessageBus(broker) as bus:
        assert await (await bus.elections()).acquire("lead", 30)
        seen = Collector()
        await bus.subscribe("#", seen, group="all")
        await bus.publish("lead", 1)
        await seen.wait()
        assert seen.data == [1]
        url = await native.url(Names(broker.queue_prefix, False).election("lead"))
        found = await native.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        assert found["Attributes"]["ApproximateNumberOfMessages"] == "1"
        assert found["Attributes"]["ApproximateNumberOfMessagesNotVisible"] == "1"


async def test_a_queue_that_was_deleted_is_made_again(broker: SQSBroker, make: Make, native: Native) -> None:
    async with MessageBus(broker) as bus:
        elections = await bus.elections()
        assert await elections.acquire("lead", 30)
        url = await native.url(Names(broker.queue_prefix, False).election("lead"))
        await native.sqs.delete_queue(QueueUrl=url)
        with pytest.raises(NotFound):
            await elections.acquire("lead", 30)
        async with MessageBus(make(auto_create=False)) as strict:
            with pytest.raises(NotFound, match=r"'lead'.*FIFO queue.*auto_create"):
                await (await strict.elections()).acquire("lead", 30)
        assert await elections.acquire("lead", 30)
