"""AMB on Azure Service Bus (an emulator of it), against azure-servicebus used well.

    python -m benchmarks.azure [--quick] [--rounds N] [--json FILE]

One server of our own, a process and an environment for everybody, in turns: docs/performance.md says how to read it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._network import amb, main
from benchmarks._peers import Contestant
from tests.servers.azure import ServiceBus, alone

RAW = "azure-servicebus"


def contestants(server: ServiceBus) -> Sequence[Contestant]:
    """Entities of their own."""
    return [
        Contestant(RAW, "azure_raw", arguments=(server.connection_string, server.ca)),
        amb("AzureServiceBusBroker", connection_string=server.connection_string, ssl_ca_certs=server.ca),
    ]


if __name__ == "__main__":
    main("azure", alone(), contestants, fewer=10)
