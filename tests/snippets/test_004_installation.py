"""The guide "Using Message Bus Adapters" (requirement text 004): what it installs."""

from __future__ import annotations

import pytest

from ._extras import check

ADAPTERS = """
| **Redis** | Low-latency, pub/sub | `pip install amb-core[redis]` |
| **Kafka** | High-throughput, durability | `pip install amb-core[kafka]` |
| **RabbitMQ** | Complex routing, enterprise | `pip install amb-core[rabbitmq]` |
| **NATS** | Cloud-native, lightweight | `pip install amb-core[nats]` |
| **Azure Service Bus** | Azure ecosystem | `pip install amb-core[azure]` |
| **AWS SQS** | AWS ecosystem | `pip install amb-core[aws]` |
"""

INSTALL = """
pip install amb-core[redis]
"""


@pytest.mark.parametrize(("text", "count"), [(ADAPTERS, 6), (INSTALL, 1)])
def test_every_extra_is_there_and_brings_what_it_is_for(text: str, count: int) -> None:
    check(text, count)
