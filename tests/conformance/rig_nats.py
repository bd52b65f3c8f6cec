"""NATS for the conformance kit: core NATS and JetStream, each on servers of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import msgspec
import nats as native
from amb_core.broker import Broker
from amb_core.testing import Rig
from amb_nats import NatsBroker

from tests.servers import nats as servers

from .rig_redis import Power

__all__ = ["core", "jetstream"]

#: Seconds. Long enough that a busy machine extends leases in time, short enough to watch them run out.
LEASE = 2.0


@contextmanager
def core() -> Iterator[Rig]:
    """Core NATS."""
    absent = {
        "strict": "a subject needs no making: there is none to be missing",
        "capped": "core NATS keeps nothing that could be too much",
        "destroy": "core NATS keeps nothing that could be deleted",
    }
    with servers.alone() as server, servers.secure() as secure:
        yield _rig("nats", server, secure, NatsBroker(server.url, response_timeout=3.0), absent)


@contextmanager
def jetstream() -> Iterator[Rig]:
    """JetStream."""
    with servers.alone() as server, servers.secure() as secure:
        broker = NatsBroker(server.url, jetstream=True, lease=LEASE, response_timeout=3.0)
        rig = _rig("nats-jetstream", server, secure, broker, {})
        yield msgspec.structs.replace(
            rig,
            destroy=_destroyer(server.url),
            capped=lambda count: msgspec.structs.replace(
                broker,
                stream_name=f"CAP{count}",
                subject_prefix=f"cap{count}",
                stream_max_msgs=count,
                stream_retention="interest",
            ),
            strict=lambda: msgspec.structs.replace(broker, stream_name="STRICT", stream_subjects=["strict.>"]),
        )


def _rig(
    name: str, server: servers.NatsServer, secure: servers.SecureNats, broker: NatsBroker, absent: dict[str, str]
) -> Rig:
    guarded = msgspec.structs.replace(
        broker, url=secure.url, user=secure.user, password="wrong-secret", tls_ca=secure.ca
    )

    async def restricted(namespace: str) -> Broker:
        # Somebody else has made the stream, for these topics: the user below may not.
        admin = msgspec.structs.replace(guarded, password=secure.password)
        if broker.stores:
            await _prepare(admin, namespace)
        return msgspec.structs.replace(admin, user=secure.limited_user, password=secure.limited_password)

    return Rig(
        name=name,
        make=lambda: broker,
        control=Power([server.process]),
        address=(server.host, server.port),
        through=lambda host, port: msgspec.structs.replace(broker, url=f"nats://{host}:{port}"),
        impostor=lambda: guarded,
        restricted=restricted,
        absent=absent,
    )


async def _prepare(admin: NatsBroker, namespace: str) -> None:
    from amb_core import MessageBus

    async with MessageBus(admin) as bus:
        await bus.publish(f"{namespace}.closed", "the first message of these topics")


def _destroyer(url: str) -> Callable[[str], Awaitable[None]]:
    async def destroy(topic: str) -> None:
        client = await native.connect(url)
        stream = client.jetstream()
        await stream.purge_stream("AMB", subject=topic)
        for consumer in await stream.consumers_info("AMB"):
            if topic in (consumer.config.filter_subject, *(consumer.config.filter_subjects or ())):
                await stream.delete_consumer("AMB", consumer.name)
        await client.close()

    return destroy
