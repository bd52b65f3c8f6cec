"""AMB on Apache Kafka."""

from __future__ import annotations

from .broker import KafkaBroker

__all__ = ["KafkaBroker"]
