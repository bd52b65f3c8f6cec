"""AMB on NATS: core NATS by default, JetStream with ``jetstream=True``."""

from __future__ import annotations

from .broker import NATSBroker, NatsBroker

__all__ = ["NATSBroker", "NatsBroker"]
