"""What AMB finds through the entry point ``sqs``. Loads no client library."""

from __future__ import annotations

from amb_core.hookspecs import BrokerRegister, hookimpl

__all__ = ["amb_register_brokers"]


@hookimpl
def amb_register_brokers(register: BrokerRegister) -> None:
    """Registers ``sqs``, also as ``sqs://region``."""
    from .broker import SQSBroker

    register(
        "sqs",
        SQSBroker,
        schemes=("sqs",),
        url_option="endpoint_url",
        env={"region_name": "AMB_SQS_REGION"},
    )
