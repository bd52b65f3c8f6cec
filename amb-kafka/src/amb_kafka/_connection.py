"""A live connection: publishing, subscribing, replay and health."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from amb_core.broker import Connection, Feed, Incoming, Outgoing, Source
from amb_core.errors import AmbError, ConfigurationError, PartialFailure

from ._clients import Clients, running, settled
from ._errors import NATIVE, translate
from ._group import open_group
from ._live import open_live
from ._replay import replay
from ._topics import Topics
from ._wire import INBOXES, Names, write

if TYPE_CHECKING:
    from .broker import KafkaBroker

__all__ = ["KafkaConnection", "connect"]


@asynccontextmanager
async def connect(options: KafkaBroker) -> AsyncIterator[Connection]:
    """See `amb_core.broker.Broker.connect`."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "KafkaBroker runs on asyncio only (uvloop included): run the program with it, or use the memory broker"
        ) from None
    clients = Clients(options)
    doing = f"connect to Kafka at {', '.join(options.addresses)}"
    try:
        with anyio.fail_after(options.connect_timeout):
            failure = await clients.why()
    except TimeoutError as error:
        failure = error
    if failure is not None:
        raise translate(failure, doing) from failure
    admin = clients.admin()
    async with running(admin, doing, options.connect_timeout):
        producer = clients.producer()
        async with running(producer, doing, options.connect_timeout):
            yield KafkaConnection(options, clients, admin, producer)


class KafkaConnection:
    """`Connection`, `Replays` and `ReportsHealth` on Kafka."""

    def __init__(
        self, options: KafkaBroker, clients: Clients, admin: AIOKafkaAdminClient, producer: AIOKafkaProducer
    ) -> None:
        self.options, self.clients, self.admin, self.producer = options, clients, admin, producer
        self.names = Names(options.topics)
        self.topics = Topics(options, admin)

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """See `amb_core.broker.Connection.send`."""
        names = [self.names.name(message.topic) for message in batch]
        if INBOXES in names:
            await self.topics.need_inboxes(INBOXES)
        errors = await self._need(batch, names)
        futures: dict[int, asyncio.Future[Any]] = {}
        for index, (message, name) in enumerate(zip(batch, names, strict=True)):
            if index in errors:
                continue
            key, headers = write(message, self.names.is_shared(name))
            partition = self.inbox_partition(message.topic) if name == INBOXES else None
            try:
                futures[index] = await self.producer.send(
                    name, message.body, key=key, partition=partition, headers=headers
                )
            except NATIVE as error:
                errors[index] = translate(error, f"publish to {message.topic!r}")
        for index, failure in (await settled(futures)).items():
            self.topics.forget(names[index])
            errors[index] = translate(failure, f"publish to {batch[index].topic!r}", unknown=True)
        if errors:
            if len(errors) == len(batch) and len({type(error) for error in errors.values()}) == 1:
                raise errors[min(errors)]
            raise PartialFailure(errors)

    async def _need(self, batch: Sequence[Outgoing], names: list[str]) -> dict[int, AmbError]:
        try:
            await self.topics.need(names)
        except AmbError as error:
            if len(set(names)) == 1:
                raise
            return await self._need_each(names, error)
        return {}

    async def _need_each(self, names: list[str], first: AmbError) -> dict[int, AmbError]:
        """One that cannot be made fails its own messages, not the others'."""
        failed: dict[str, AmbError] = {}
        for name in dict.fromkeys(names):
            try:
                await self.topics.need([name])
            except AmbError as error:
                failed[name] = error
        return {index: failed[name] for index, name in enumerate(names) if name in failed}

    def inbox_partition(self, address: str) -> int:
        """Where the replies to an address are."""
        return zlib.crc32(address.encode()) % max(1, self.topics.known.get(INBOXES, 1))

    def open(self, source: Source) -> AbstractAsyncContextManager[Feed]:
        """See `amb_core.broker.Connection.open`."""
        return open_live(self, source) if source.group is None else open_group(self, source)

    def replay(self, pattern: str, since: float | str | None, until: float | None) -> AsyncIterator[Incoming]:
        """See `amb_core.broker.Replays.replay`."""
        return replay(self, pattern, since, until)

    async def ping(self) -> Mapping[str, str]:
        """See `amb_core.broker.ReportsHealth.ping`."""
        began = time.perf_counter()
        try:
            with anyio.fail_after(self.options.response_timeout):
                cluster = await self.admin.describe_cluster()
        except NATIVE as error:
            raise translate(error, "ask Kafka for its health") from error
        return {
            "servers": ", ".join(f"{one['host']}:{one['port']}" for one in cluster["brokers"]),
            "cluster": str(cluster.get("cluster_id", "?")),
            "latency": f"{(time.perf_counter() - began) * 1000:.2f} ms",
        }
