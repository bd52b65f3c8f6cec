"""AMB on Amazon SQS and SNS."""

from __future__ import annotations

from .broker import AWSSQSBroker, SQSBroker

__all__ = ["AWSSQSBroker", "SQSBroker"]
