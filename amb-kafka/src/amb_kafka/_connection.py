"""A live connection: publishing, subscribing, replay and health."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from amb_core.broker import Connection, Feed, Incoming, Outgoing, Source
from amb_core.concurrency import require_asyncio
from amb_core.errors import AmbError, PartialFailure

from ._clients import Clients, running
from ._elections import Elections
from ._errors import NATIVE, translate
from ._group import open_group
from ._live import open_live
from ._publish import Publishing
from ._registry import Registry, registry
from ._replay import replay
from ._schemas import Schemas
from ._topics import Topics
from ._wire import INBOXES, Names

if TYPE_CHECKING:
    from .broker import KafkaBroker

__all__ = ["KafkaConnection", "connect"]


@asynccontextmanager
async def connect(options: KafkaBroker) -> AsyncIterator[Connection]:
    """See `amb_core.broker.Broker.connect`."""
    require_asyncio("KafkaBroker")
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
        async with running(producer, doing, options.connect_timeout), AsyncExitStack() as stack:
            found = await stack.enter_async_context(registry(options))
            yield KafkaConnection(options, clients, admin, producer, stack, found)


class KafkaConnection:
    """`Connection`, `Replays`, `Elects`, `ReportsHealth` and, with a registry, `KeepsSchemas` on Kafka."""

    def __init__(
        self,
        options: KafkaBroker,
        clients: Clients,
        admin: AIOKafkaAdminClient,
        producer: AIOKafkaProducer,
        stack: AsyncExitStack,
        registry: Registry | None,
    ) -> None:
        self.options, self.clients, self.admin, self.producer = options, clients, admin, producer
        self.names = Names(options.topics)
        self.topics = Topics(options, admin)
        self._publishing = Publishing(producer, self.names, self.topics, options.max_request_size)
        elections = Elections(self, stack)
        #: See `amb_core.broker.Elects`.
        self.acquire, self.renew, self.release = elections.acquire, elections.renew, elections.release
        self.schemas = None if registry is None else Schemas(options, self.names, registry)
        if self.schemas is not None:
            #: See `amb_core.broker.KeepsSchemas`.
            self.frame = self.schemas.frame

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """See `amb_core.broker.Connection.send`."""
        names = [self.names.name(message.topic) for message in batch]
        if INBOXES in names:
            await self.topics.need_inboxes(INBOXES)
        errors = await self._need(batch, names)
        await self._publishing.store(batch, names, errors)
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
        registry = {} if self.schemas is None else {"schema registry": self.schemas.problem or "no complaints"}
        return registry | {
            "servers": ", ".join(f"{one['host']}:{one['port']}" for one in cluster["brokers"]),
            "cluster": str(cluster.get("cluster_id", "?")),
            "latency": f"{(time.perf_counter() - began) * 1000:.2f} ms",
        }
