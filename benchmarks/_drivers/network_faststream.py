"""FastStream on NATS, Kafka or RabbitMQ, without its log: ``network_faststream BROKER ADDRESS``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from benchmarks._drivers._child import AT_ONCE, Handle, Send, serve
from benchmarks._drivers._network import cases

_NAME, _ADDRESS = sys.argv[1:3]
_module: Any = import_module(f"faststream.{_NAME}")


class _Nats:
    """JetStream: a shared pull consumer with batches of a hundred."""

    without = ()
    _stream = "FAST"

    def broker(self) -> Any:
        return _module.NatsBroker(_ADDRESS, logger=None)

    @asynccontextmanager
    async def made(self, topic: str) -> AsyncIterator[None]:
        import nats

        client = await nats.connect(_ADDRESS)
        await client.jsm().add_stream(name=self._stream, subjects=[topic])
        try:
            yield
        finally:
            await client.jsm().delete_stream(self._stream)
            await client.close()

    def publish(self, broker: Any, topic: str) -> Send:
        async def send(data: Any) -> None:
            await broker.publish(data, topic, stream=self._stream)

        return send

    def subscriber(self, broker: Any, topic: str, at_once: int) -> Any:
        return broker.subscriber(
            topic,
            stream=_module.JStream(self._stream, declare=False),
            durable="g",
            pull_sub=_module.PullSub(batch_size=100),
            deliver_policy=_module.DeliverPolicy.ALL if hasattr(_module, "DeliverPolicy") else None,
            max_workers=at_once,
        )

    def responder(self, broker: Any, topic: str, at_once: int) -> Any:
        return broker.subscriber(topic, queue="g", max_workers=at_once)


class _Kafka:
    """A group; one handler at a time unless it may acknowledge first, so that is what it does for a hundred."""

    without = ("request",)  # it has none that waits for its own reply topic without one being set up by hand

    def broker(self) -> Any:
        return _module.KafkaBroker(_ADDRESS, logger=None, acks="all", enable_idempotence=True)

    @asynccontextmanager
    async def made(self, topic: str) -> AsyncIterator[None]:
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=_ADDRESS)
        await admin.start()
        await admin.create_topics([NewTopic(topic, 4, 1)])
        await admin.close()
        yield

    def publish(self, broker: Any, topic: str) -> Send:
        async def send(data: Any) -> None:
            await broker.publish(data, topic)

        return send

    def subscriber(self, broker: Any, topic: str, at_once: int) -> Any:
        policy = import_module("faststream").AckPolicy
        return broker.subscriber(
            topic,
            group_id=f"g-{topic}",
            auto_offset_reset="earliest",
            ack_policy=policy.ACK if at_once == 1 else policy.ACK_FIRST,
            max_workers=at_once,
        )

    responder = subscriber


class _Rabbit:
    """A quorum queue, persistent messages with confirms, a prefetch of so many."""

    without = ()

    def broker(self) -> Any:
        return _module.RabbitBroker(_ADDRESS, logger=None)

    @asynccontextmanager
    async def made(self, topic: str) -> AsyncIterator[None]:
        async with self.broker() as broker:
            queue = await broker.declare_queue(self._queue(topic))
            yield
            await queue.delete(if_unused=False, if_empty=False)

    def _queue(self, topic: str) -> Any:
        return _module.RabbitQueue(topic, queue_type=_module.QueueType.QUORUM, durable=True)

    def publish(self, broker: Any, topic: str) -> Send:
        async def send(data: Any) -> None:
            await broker.publish(data, topic, persist=True)

        return send

    def subscriber(self, broker: Any, topic: str, at_once: int) -> Any:
        return broker.subscriber(self._queue(topic), channel=_module.Channel(prefetch_count=at_once))

    responder = subscriber


class _FastStream:
    """What all its brokers share."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    @asynccontextmanager
    async def publishing(self, topic: str) -> AsyncIterator[Send]:
        async with self._kind.made(topic), self._kind.broker() as broker:
            yield self._kind.publish(broker, topic)

    @asynccontextmanager
    async def consuming(self, topic: str, waiting: int, data: Any, handle: Handle, at_once: int) -> AsyncIterator[None]:
        async with self._kind.made(topic):
            async with self._kind.broker() as publisher:
                await _all(waiting, self._kind.publish(publisher, topic), data)
            broker = self._kind.broker()

            @self._kind.subscriber(broker, topic, at_once)  # type: ignore[untyped-decorator, unused-ignore]
            async def consume(body: dict[str, Any]) -> None:
                await handle(body)

            async with broker:
                await broker.start()
                yield

    @asynccontextmanager
    async def answering(self, topic: str, at_once: int) -> AsyncIterator[Send]:
        broker = self._kind.broker()

        @self._kind.responder(broker, topic, at_once)  # type: ignore[untyped-decorator, unused-ignore]
        async def answer(body: dict[str, Any]) -> dict[str, Any]:
            return body

        async with broker:
            await broker.start()

            async def request(data: Any) -> Any:
                return await (await broker.request(data, topic, timeout=30)).decode()

            yield request


async def _all(count: int, send: Send, data: Any) -> None:
    async def some() -> None:
        for _ in range(count // AT_ONCE):
            await send(data)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)), *(send(data) for _ in range(count % AT_ONCE)))


_KINDS: dict[str, Callable[[], Any]] = {"nats": _Nats, "kafka": _Kafka, "rabbit": _Rabbit}

if __name__ == "__main__":
    kind = _KINDS[_NAME]()
    serve(cases(_FastStream(kind), kind.without))
