"""What AMB finds through the entry point ``kafka``. Loads no client library."""

from __future__ import annotations

from amb_core.hookspecs import BrokerRegister, hookimpl

__all__ = ["amb_register_brokers"]


@hookimpl
def amb_register_brokers(register: BrokerRegister) -> None:
    """Registers ``kafka``, also as ``kafka://host:port,host:port``."""
    from .broker import KafkaBroker

    register(
        "kafka",
        KafkaBroker,
        schemes=("kafka",),
        url_option="bootstrap_servers",
        env={"bootstrap_servers": "AMB_KAFKA_BROKERS", "schema_registry_url": "AMB_SCHEMA_REGISTRY_URL"},
    )
