"""AMB on Azure Service Bus: a topic, and a subscription for each group."""

from __future__ import annotations

from .broker import AzureServiceBusBroker

__all__ = ["AzureServiceBusBroker"]
