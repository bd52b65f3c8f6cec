"""AMB on RabbitMQ, against aio-pika used well and against FastStream.

    python -m benchmarks.rabbitmq [--quick] [--rounds N] [--json FILE] [--without-peers]

One server of our own, a process and an environment for everybody, in turns: docs/performance.md says how to read it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._network import amb, faststream, main
from benchmarks._peers import Contestant
from tests.servers.rabbitmq import RabbitServer, alone

RAW = "aio-pika"


def contestants(server: RabbitServer) -> Sequence[Contestant]:
    """Quorum queues of their own."""
    return [
        Contestant(RAW, "rabbitmq_raw", arguments=(server.url,)),
        amb("RabbitMQBroker", url=server.url),
        faststream("rabbit", "rabbit", server.url),
    ]


if __name__ == "__main__":
    main("rabbitmq", alone(), contestants)
