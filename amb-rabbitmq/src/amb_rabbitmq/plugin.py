"""What AMB finds through the entry point ``rabbitmq``. Loads no client library."""

from __future__ import annotations

from amb_core.hookspecs import BrokerRegister, hookimpl

__all__ = ["amb_register_brokers"]


@hookimpl
def amb_register_brokers(register: BrokerRegister) -> None:
    """Registers ``rabbitmq``, also as ``amqp://`` and ``amqps://`` (TLS)."""
    from .broker import RabbitMQBroker

    register("rabbitmq", RabbitMQBroker, schemes=("amqp", "amqps"))
