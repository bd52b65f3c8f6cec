"""AMB on NATS JetStream, against nats-py used well and against FastStream.

    python -m benchmarks.nats [--quick] [--rounds N] [--json FILE] [--without-peers]

One server of our own, a process and an environment for everybody, in turns: docs/performance.md says how to read it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._network import amb, faststream, main
from benchmarks._peers import Contestant
from tests.servers.nats import NatsServer, alone

RAW = "nats-py"


def contestants(server: NatsServer) -> Sequence[Contestant]:
    """Streams of their own."""
    return [
        Contestant(RAW, "nats_raw", arguments=(server.url,)),
        amb("NatsBroker", url=server.url, jetstream=True),
        faststream("nats", "nats", server.url),
    ]


if __name__ == "__main__":
    main("nats", alone(), contestants)
