"""The page of ``agentmesh-message-bus`` (requirement text 001): what it installs; see `_extras` for the names."""

from __future__ import annotations

from ._extras import check

INSTALL = """
pip install agentmesh-message-bus

pip install agentmesh-message-bus[redis]      # Redis support
pip install agentmesh-message-bus[rabbitmq]   # RabbitMQ support
pip install agentmesh-message-bus[kafka]      # Kafka support
pip install agentmesh-message-bus[all]        # All adapters
"""


def test_every_extra_is_there_and_brings_what_it_is_for() -> None:
    check(INSTALL, 5)
