"""What AMB finds through the entry point ``redis``. Loads no client library."""

from __future__ import annotations

from amb_core.hookspecs import BrokerRegister, hookimpl

__all__ = ["amb_register_brokers"]


@hookimpl
def amb_register_brokers(register: BrokerRegister) -> None:
    """Registers ``redis``, also as ``rediss://`` (TLS) and ``unix://`` (a socket)."""
    from .broker import RedisBroker

    register("redis", RedisBroker, schemes=("redis", "rediss", "unix"))
