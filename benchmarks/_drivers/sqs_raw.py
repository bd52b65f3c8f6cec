"""aiobotocore used well: messages sent, received and deleted by tens, ten receivers at once, long polling."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count as counter
from typing import Any

import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from benchmarks._drivers._child import AT_ONCE, Handle, Send, beside, serve
from benchmarks._drivers._network import Batches, cases, run

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
#: As many as a request of SQS takes.
_BATCH = 10


@asynccontextmanager
async def _client() -> AsyncIterator[Any]:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    config = AioConfig(max_pool_connections=AT_ONCE)
    async with get_session().create_client("sqs", endpoint_url=sys.argv[1], config=config, **keys) as client:
        yield client


@asynccontextmanager
async def _queue(client: Any, topic: str) -> AsyncIterator[str]:
    url: str = (await client.create_queue(QueueName=topic.replace(".", "-")))["QueueUrl"]
    try:
        yield url
    finally:
        await client.delete_queue(QueueUrl=url)


def _sender(client: Any, url: str) -> Send:
    async def deliver(batch: list[Any]) -> None:
        entries = [{"Id": str(index), "MessageBody": _encode(data).decode()} for index, data in enumerate(batch)]
        await client.send_message_batch(QueueUrl=url, Entries=entries)

    return Batches(deliver, _BATCH).send


class _Sqs:
    @asynccontextmanager
    async def publishing(self, topic: str) -> AsyncIterator[Send]:
        async with _client() as client, _queue(client, topic) as url:
            yield _sender(client, url)

    @asynccontextmanager
    async def consuming(self, topic: str, waiting: int, data: Any, handle: Handle, at_once: int) -> AsyncIterator[None]:
        async with _client() as client, _queue(client, topic) as url:
            send, most = _sender(client, url), min(at_once, _BATCH)
            for begin in range(0, waiting, AT_ONCE):
                await asyncio.gather(*(send(data) for _ in range(min(AT_ONCE, waiting - begin))))

            async def consume() -> None:
                while True:
                    got = await client.receive_message(QueueUrl=url, MaxNumberOfMessages=most, WaitTimeSeconds=1)
                    messages = got.get("Messages", ())
                    await run(handle, [_decode(message["Body"]) for message in messages], at_once)
                    done = [
                        {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]}
                        for index, message in enumerate(messages)
                    ]
                    if done:
                        await client.delete_message_batch(QueueUrl=url, Entries=done)

            async with beside(*(consume() for _ in range(max(1, at_once // _BATCH)))):
                yield

    @asynccontextmanager
    async def answering(self, topic: str, at_once: int) -> AsyncIterator[Send]:
        """Requests on one queue, replies on another, matched by number."""
        waiting: dict[int, asyncio.Future[Any]] = {}
        number = counter()
        async with _client() as client, _queue(client, topic) as asked, _queue(client, f"{topic}-replies") as told:
            send, reply = _sender(client, asked), _sender(client, told)

            async def answer(body: Any) -> None:
                await reply(body)

            async def collect(body: Any) -> None:
                waiting.pop(body["number"]).set_result(body["data"])

            async def request(data: Any) -> Any:
                key, answered = next(number), asyncio.get_running_loop().create_future()
                waiting[key] = answered
                await send({"number": key, "data": data})
                return await answered

            async with beside(
                _serve(client, asked, answer, min(at_once, _BATCH)), _serve(client, told, collect, _BATCH)
            ):
                yield request


async def _serve(client: Any, url: str, handle: Handle, most: int) -> None:
    """Receive, delete, handle side by side; for ever."""
    while True:
        got = await client.receive_message(QueueUrl=url, MaxNumberOfMessages=most, WaitTimeSeconds=1)
        messages = got.get("Messages", ())
        if messages:
            done = [
                {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]} for index, message in enumerate(messages)
            ]
            await client.delete_message_batch(QueueUrl=url, Entries=done)
            await run(handle, [_decode(message["Body"]) for message in messages], len(messages))


if __name__ == "__main__":
    serve(cases(_Sqs()))
