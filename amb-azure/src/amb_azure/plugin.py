"""What AMB finds through the entry point ``azure``. Loads no client library."""

from __future__ import annotations

from amb_core.hookspecs import BrokerRegister, hookimpl

__all__ = ["amb_register_brokers"]


@hookimpl
def amb_register_brokers(register: BrokerRegister) -> None:
    """Registers ``azure``; its address is a connection string, in ``AMB_AZURE_CONNECTION_STRING``."""
    from .broker import AzureServiceBusBroker

    register("azure", AzureServiceBusBroker, url_option="connection_string")
