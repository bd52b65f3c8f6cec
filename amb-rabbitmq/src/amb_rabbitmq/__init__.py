"""AMB on RabbitMQ (AMQP 0-9-1): a topic exchange, and a quorum queue for each group."""

from __future__ import annotations

from .broker import RabbitMQBroker

__all__ = ["RabbitMQBroker"]
