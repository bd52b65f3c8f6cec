"""AMB on Apache Kafka, against aiokafka used well and against FastStream.

    python -m benchmarks.kafka [--quick] [--rounds N] [--json FILE] [--without-peers]

One server of our own, a process and an environment for everybody, in turns: docs/performance.md says how to read it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._network import amb, faststream, main
from benchmarks._peers import Contestant
from tests.servers.kafka import KafkaServer, alone

RAW = "aiokafka"


def contestants(server: KafkaServer) -> Sequence[Contestant]:
    """Topics of their own, four partitions each."""
    return [
        Contestant(RAW, "kafka_raw", arguments=(server.address,)),
        amb("KafkaBroker", bootstrap_servers=server.address),
        faststream("kafka", "kafka", server.address),
    ]


if __name__ == "__main__":
    main("kafka", alone(), contestants)
