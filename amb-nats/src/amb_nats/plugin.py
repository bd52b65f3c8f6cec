"""What AMB finds through the entry point ``nats``. Loads no client library."""

from __future__ import annotations

from amb_core.hookspecs import BrokerRegister, hookimpl

__all__ = ["amb_register_brokers"]


@hookimpl
def amb_register_brokers(register: BrokerRegister) -> None:
    """Registers ``nats``, also as ``tls://``. NATS's own ``NATS_URL`` counts where AMB's is not set."""
    from .broker import NatsBroker

    register("nats", NatsBroker, schemes=("nats", "tls"), env={"url": "NATS_URL"})
