"""The options as aiokafka's clients take them."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import create_conn
from amb_core.errors import ConfigurationError

from ._assign import Assignor
from ._errors import NATIVE, translate
from ._stopping import stop

if TYPE_CHECKING:
    from .broker import KafkaBroker

__all__ = ["Clients", "running", "settled", "watched"]

#: "Never": a feed that waits for its handlers is alive, and its heartbeat says so.
_EVER = 2**31 - 1

#: Bytes of a record batch: so that what a hundred publish at once is few requests. aiokafka's own is 16 KiB.
_BATCH = 512 * 1024

# What of `client_options` is for whom; everything else goes to all three.
_PRODUCER = {"linger_ms", "max_batch_size", "transaction_timeout_ms"}
_CONSUMER = {
    "check_crcs", "client_rack", "fetch_max_bytes", "fetch_max_wait_ms", "fetch_min_bytes", "group_instance_id",
    "isolation_level", "max_partition_fetch_bytes",
}  # fmt: skip


# What it says belongs into the logs of those who want it; without this, Python prints it.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())


class Clients:
    """Makes clients; they are not started."""

    def __init__(self, options: KafkaBroker) -> None:
        self._options = options
        extra = options.client_options
        common: dict[str, Any] = {
            "bootstrap_servers": options.addresses,
            "client_id": options.client_id,
            "request_timeout_ms": int(options.response_timeout * 1000),
            "security_protocol": options.security_protocol,
            "ssl_context": _context(options) if options.security_protocol.endswith("SSL") else None,
        }
        if options.sasl_username is not None:
            common["sasl_mechanism"] = options.sasl_mechanism
            common["sasl_plain_username"] = options.sasl_username
            common["sasl_plain_password"] = options.sasl_password
        common |= {name: value for name, value in extra.items() if name not in _PRODUCER | _CONSUMER}
        self._common: dict[str, Any] = common
        self._producing: dict[str, Any] = {"max_batch_size": _BATCH}
        self._producing |= {name: extra[name] for name in _PRODUCER & extra.keys()}
        self._consuming: dict[str, Any] = {name: extra[name] for name in _CONSUMER & extra.keys()}

    def admin(self) -> AIOKafkaAdminClient:
        """For topics and groups."""
        return AIOKafkaAdminClient(**self._common)

    def producer(self) -> AIOKafkaProducer:
        """Idempotent, confirmed by all replicas that are in sync."""
        return AIOKafkaProducer(
            **self._common, acks="all", enable_idempotence=True, max_request_size=self._options.max_request_size,
            compression_type=self._options.compression_type, **self._producing,
        )  # fmt: skip

    def consumer(self, group: str | None = None, assignor: Assignor | None = None) -> AIOKafkaConsumer:
        """Commits nothing by itself. Where a position is gone it goes on with the oldest record there is."""
        options = self._options
        return AIOKafkaConsumer(
            group_id=group, enable_auto_commit=False, auto_offset_reset="earliest",
            session_timeout_ms=options.session_timeout_ms, heartbeat_interval_ms=options.heartbeat_interval_ms,
            rebalance_timeout_ms=int(options.rebalance_timeout * 1000), max_poll_interval_ms=_EVER,
            metadata_max_age_ms=30_000, exclude_internal_topics=False,
            partition_assignment_strategy=(assignor,), **self._common, **self._consuming,
        )  # fmt: skip

    async def why(self) -> Exception | None:
        """Why no server can be used, or None if one can: the clients log that, and raise something else."""
        found: Exception | None = None
        wanted = {"client_id", "request_timeout_ms", "security_protocol", "ssl_context"}
        options = {name: one for name, one in self._common.items() if name in wanted or name.startswith("sasl_")}
        for address in self._options.addresses:
            host, _, port = address.rpartition(":")
            try:
                link = await create_conn(host.strip("[]"), int(port), **options)
            except NATIVE as error:
                found = found or error
            else:
                link.close()
                return None
        return found


@asynccontextmanager
async def running(client: Any, doing: str, within: float) -> AsyncIterator[None]:
    """Starts a client, and stops it at the end, within seconds. Raises: AmbError."""
    try:
        try:
            with anyio.fail_after(within):
                await client.start()
        except NATIVE as error:
            raise translate(error, doing) from error
        yield
    finally:
        await stop(client)


def _context(options: KafkaBroker) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ssl_cafile)
        if options.ssl_certfile:
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
    except OSError as error:
        raise ConfigurationError(f"KafkaBroker: ssl_cafile, ssl_certfile or ssl_keyfile: {error}") from error
    context.check_hostname = options.ssl_check_hostname
    return context


async def settled(futures: Mapping[int, asyncio.Future[Any]]) -> dict[int, BaseException]:
    """Wait until the producer knows what became of each record; the errors by index. A wait that is cancelled leaves
    the records on their way."""
    if futures:
        await asyncio.wait(futures.values())
    return {index: error for index, future in futures.items() if (error := future.exception()) is not None}


def watched(producer: AIOKafkaProducer, stored: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """What the producer says became of a record or a batch of them, for those who wait for it and those who do not any
    more. Where it failed for good, its numbers are used up: the servers would refuse all that comes after it as out of
    order. So the producer then takes another id, and counts from 0."""

    def ended(future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and future.exception() is not None:
            manager: Any = producer._txn_manager
            manager.__init__(manager.transactional_id, manager.transaction_timeout_ms)

    stored.add_done_callback(ended)
    return stored
