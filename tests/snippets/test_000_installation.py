"""The page of ``agent_os.amb`` (requirement text 000): what it installs; see `_extras` for the names."""

from __future__ import annotations

from ._extras import check

INSTALL = """
# Install via the kernel with AMB extras
pip install agent-os-kernel[amb]
# Install with specific broker support
pip install agent-os-kernel[amb,redis] # Redis backend
pip install agent-os-kernel[amb,kafka] # Kafka backend
pip install agent-os-kernel[amb,nats] # NATS backend
pip install agent-os-kernel[amb,sqs] # AWS SQS backend
# Install with all broker backends
pip install agent-os-kernel[amb,all-brokers]
# Install with specific serialization support
pip install agent-os-kernel[amb,msgpack] # MessagePack serialization
pip install agent-os-kernel[amb,protobuf] # Protobuf serialization
"""


def test_every_extra_is_there_and_brings_what_it_is_for() -> None:
    check(INSTALL, 15)
