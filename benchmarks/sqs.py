"""AMB on Amazon SQS (an emulator of it), against aiobotocore used well.

    python -m benchmarks.sqs [--quick] [--rounds N] [--json FILE]

One server of our own, a process and an environment for everybody, in turns: docs/performance.md says how to read it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._network import amb, main
from benchmarks._peers import Contestant
from tests.servers.sqs import SqsServer, alone

RAW = "aiobotocore"
_CREDENTIALS = {"region_name": "us-east-1", "aws_access_key_id": "test", "aws_secret_access_key": "test"}


def contestants(server: SqsServer) -> Sequence[Contestant]:
    """Queues of their own."""
    return [
        Contestant(RAW, "sqs_raw", arguments=(server.url,)),
        amb(
            "SQSBroker",
            endpoint_url=server.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        ),
    ]


if __name__ == "__main__":
    main("sqs", alone(), contestants, fewer=4)
