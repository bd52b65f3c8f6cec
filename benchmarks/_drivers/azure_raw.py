"""azure-servicebus used well: lists sent at once, as many received as may be handled, completed side by side."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count as counter
from typing import Any

import msgspec
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from benchmarks._drivers._child import AT_ONCE, Handle, Send, beside, serve
from benchmarks._drivers._network import Batches, cases, run

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
#: So many of the large messages fit into the 256 KiB of a batch.
_BATCH = 20


@asynccontextmanager
async def _queue(*names: str) -> AsyncIterator[ServiceBusClient]:
    string, authority = sys.argv[1:3]
    async with ServiceBusAdministrationClient.from_connection_string(string, connection_verify=authority) as admin:
        for name in names:
            await admin.create_queue(name)
        async with ServiceBusClient.from_connection_string(string) as client:
            yield client
        for name in names:
            await admin.delete_queue(name)


def _body(message: ServiceBusReceivedMessage) -> Any:
    return _decode(b"".join(message.body))


def _sending(sender: ServiceBusSender) -> Send:
    async def deliver(batch: list[Any]) -> None:
        await sender.send_messages([ServiceBusMessage(_encode(data)) for data in batch])

    return Batches(deliver, _BATCH).send


async def _serve(receiver: ServiceBusReceiver, handle: Handle, at_once: int) -> None:
    """Receive, handle, complete; for ever."""
    while True:
        batch = await receiver.receive_messages(max_message_count=at_once, max_wait_time=5)
        await run(handle, [_body(message) for message in batch], at_once)
        await asyncio.gather(*(receiver.complete_message(message) for message in batch))


class _Azure:
    @asynccontextmanager
    async def publishing(self, topic: str) -> AsyncIterator[Send]:
        async with _queue(topic) as client, client.get_queue_sender(topic) as sender:
            yield _sending(sender)

    @asynccontextmanager
    async def consuming(self, topic: str, waiting: int, data: Any, handle: Handle, at_once: int) -> AsyncIterator[None]:
        async with _queue(topic) as client:
            async with client.get_queue_sender(topic) as sender:
                send = _sending(sender)
                for begin in range(0, waiting, AT_ONCE):
                    await asyncio.gather(*(send(data) for _ in range(min(AT_ONCE, waiting - begin))))
            async with client.get_queue_receiver(topic) as receiver, beside(_serve(receiver, handle, at_once)):
                yield

    @asynccontextmanager
    async def answering(self, topic: str, at_once: int) -> AsyncIterator[Send]:
        """Requests on one queue, replies on another, matched by number."""
        waiting: dict[int, asyncio.Future[Any]] = {}
        number, replies = counter(), f"{topic}-replies"
        async with (
            _queue(topic, replies) as client,
            client.get_queue_sender(topic) as asks,
            client.get_queue_sender(replies) as tells,
            client.get_queue_receiver(topic) as asked,
            client.get_queue_receiver(replies) as told,
        ):
            send, reply = _sending(asks), _sending(tells)

            async def collect(body: Any) -> None:
                waiting.pop(body["number"]).set_result(body["data"])

            async def request(data: Any) -> Any:
                key, answered = next(number), asyncio.get_running_loop().create_future()
                waiting[key] = answered
                await send({"number": key, "data": data})
                return await answered

            async with beside(_serve(asked, reply, at_once), _serve(told, collect, at_once)):
                yield request


if __name__ == "__main__":
    serve(cases(_Azure()))
