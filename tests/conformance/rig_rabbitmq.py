"""RabbitMQ for the conformance kit, on a node of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import aiormq
import anyio.to_thread
import msgspec
from amb_core.broker import Broker
from amb_core.testing import Rig
from amb_rabbitmq import RabbitMQBroker

from tests.servers import rabbitmq as servers

from .rig_redis import Power

__all__ = ["rabbitmq"]

ABSENT = {"strict": "a topic needs no making: there is none to be missing"}
#: Messages that groups' queues may hold, by a policy of the operator.
CAPS = (50, 100)


@contextmanager
def rabbitmq() -> Iterator[Rig]:
    """One node, with users."""
    with servers.alone() as server:
        for cap in CAPS:
            policy = f'{{"max-length": {cap}, "overflow": "reject-publish"}}'
            server.process.ctl("set_policy", f"cap{cap}", rf"^cap{cap}\.group", policy, "--apply-to", "queues")
        # A short patience: a frozen server must be noticed within a case.
        broker = RabbitMQBroker(server.url, response_timeout=4.0, heartbeat=10)
        yield Rig(
            name="rabbitmq",
            make=lambda: broker,
            control=Power([server.process]),
            address=(server.host, server.port),
            through=lambda host, port: msgspec.structs.replace(broker, url=f"amqp://guest:guest@{host}:{port}/"),
            impostor=lambda: msgspec.structs.replace(broker, password="wrong-secret"),
            restricted=lambda namespace: _restricted(server, broker, namespace),
            capped=lambda cap: msgspec.structs.replace(broker, exchange=f"cap{CAPS[CAPS.index(cap)]}"),
            destroy=_destroyer(server),
            absent=ABSENT,
        )


async def _restricted(server: servers.RabbitServer, broker: RabbitMQBroker, namespace: str) -> Broker:
    def prepare() -> None:
        server.process.ctl("add_user", namespace, "open")
        everything = r"^(amb(\..*)?|amq\.default|amq\.gen.*|_amb\.inbox\..*)$"
        server.process.ctl("set_permissions", namespace, everything, everything, everything)
        opened = rf"^({namespace}\.open\b.*|_amb\..*|amb\..*)$"
        for exchange in ("amb", "amb.express"):
            server.process.ctl("set_topic_permissions", namespace, exchange, opened, opened)

    await anyio.to_thread.run_sync(prepare)
    return msgspec.structs.replace(broker, username=namespace, password="open")


def _destroyer(server: servers.RabbitServer) -> Callable[[str], Awaitable[None]]:
    async def destroy(topic: str) -> None:
        listed = await anyio.to_thread.run_sync(
            server.process.ctl, "list_bindings", "source_name", "destination_name", "routing_key"
        )
        async with aiormq.connect(server.url) as connection:
            channel = await connection.channel()
            for line in listed.splitlines():
                source, queue, key = line.split("\t")
                if source.startswith("amb") and key == topic and not queue.startswith("amq.gen"):
                    await channel.queue_delete(queue)

    return destroy
