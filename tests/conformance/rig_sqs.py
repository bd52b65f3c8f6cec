"""SQS for the conformance kit, on an emulator of its own: standard queues, FIFO queues, SNS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import msgspec
from amb_core.testing import Rig
from amb_sqs import SQSBroker

from tests.servers import sqs as servers

from .rig_redis import Power

__all__ = ["broker_for", "rig_for_server", "sqs"]

#: Whole seconds are all that SQS has. Long enough that a busy machine extends leases in time.
LEASE = 2
ABSENT = {
    "capped": "queues have no limit on what they keep",
    "impostor": "the emulator checks no signatures: to be tried on AWS",
    "restricted": "the emulator checks no policies of users: to be tried on AWS",
}


def broker_for(url: str) -> SQSBroker:
    """The emulator there, with short times."""
    return SQSBroker(
        url,
        region_name="us-east-1",
        aws_access_key_id=servers.KEY,
        aws_secret_access_key=servers.SECRET,
        visibility_timeout=LEASE,
        wait_time_seconds=1,
        discovery_interval=0.05,
        response_timeout=3.0,
    )


@contextmanager
def sqs() -> Iterator[Rig]:
    """Standard queues."""
    with servers.alone() as server:
        yield rig_for_server(server, broker_for(server.url))


def rig_for_server(server: servers.SqsServer, broker: SQSBroker) -> Rig:
    """The rig for one way of using the server."""
    return Rig(
        name="sqs",
        make=lambda: broker,
        control=Power([server.process]),
        address=(server.host, server.port),
        through=lambda host, port: msgspec.structs.replace(broker, endpoint_url=f"http://{host}:{port}"),
        destroy=_destroyer(broker),
        strict=lambda: msgspec.structs.replace(broker, auto_create=False),
        absent=ABSENT,
        # The emulator goes through all that a queue holds for every message: a backlog of 100,000 is beyond it.
        quick=True,
    )


def _destroyer(broker: SQSBroker) -> Callable[[str], Awaitable[None]]:
    async def destroy(topic: str) -> None:
        name = topic.replace("-", "--").replace(".", "_")
        async with servers.client(broker.endpoint_url or "") as client:
            listed = await client.list_queues(QueueNamePrefix=f"{broker.queue_prefix}{name}-_")
            for url in listed.get("QueueUrls", ()):
                await client.delete_queue(QueueUrl=url)

    return destroy
