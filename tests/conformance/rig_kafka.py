"""Kafka for the conformance kit, on a server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from aiokafka.admin import AIOKafkaAdminClient
from amb_core.broker import Broker
from amb_core.testing import Rig
from amb_kafka import KafkaBroker

from tests.servers import kafka as servers

from .rig_redis import Power

__all__ = ["kafka"]


@contextmanager
def kafka() -> Iterator[Rig]:
    """One broker in KRaft mode, with a listener for users."""
    with servers.alone() as server:
        broker = KafkaBroker(
            server.address, partitions=2, discovery_interval=0.3, session_timeout_ms=6000, heartbeat_interval_ms=250,
            rebalance_timeout=10.0, connect_timeout=5.0,
        )  # fmt: skip
        guarded = msgspec.structs.replace(
            broker, bootstrap_servers=f"127.0.0.1:{server.sasl_port}", security_protocol="SASL_PLAINTEXT",
            sasl_username=server.user, sasl_password="wrong-secret",
        )  # fmt: skip

        async def destroy(topic: str) -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
            await admin.start()
            try:
                await admin.delete_topics([topic])
            finally:
                await admin.close()

        async def restricted(namespace: str) -> Broker:
            await servers.allow(server, f"{namespace}.open")
            return msgspec.structs.replace(
                guarded, sasl_username=server.limited_user, sasl_password=server.limited_password
            )

        yield Rig(
            name="kafka",
            make=lambda: broker,
            control=Power([server.process]),
            # Without `through`: the drills watch the port open.
            address=(server.host, server.port),
            impostor=(lambda: guarded) if server.sasl_port else None,
            strict=lambda: msgspec.structs.replace(broker, create_topics=False),
            destroy=destroy,
            restricted=restricted if server.sasl_port else None,
            absent={
                "proxy": "the servers say themselves where they are, so a proxy is passed by",
                "capped": "retention is the topic's own setting, and counts bytes and time",
            },
        )
