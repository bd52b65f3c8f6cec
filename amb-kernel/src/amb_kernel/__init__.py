"""A kernel for agents on the Agent Message Bus: policies, audit, rate limits, schedules, leader election."""

from __future__ import annotations

from ._audit import AuditRecord
from ._elections import Leadership
from ._governor import Context
from ._life import AgentStatus
from ._space import KernelSpace
from ._view import AgentKernel, KernelSubscription
from .errors import AuditFailed, KernelNotRunning, MessageRefused, PolicyDenied, RateLimited
from .policy import Policy, Rate, Rule

__version__ = "1.0.0"
__all__ = [
    "AgentKernel",
    "AgentStatus",
    "AuditFailed",
    "AuditRecord",
    "Context",
    "KernelNotRunning",
    "KernelSpace",
    "KernelSubscription",
    "Leadership",
    "MessageRefused",
    "Policy",
    "PolicyDenied",
    "Rate",
    "RateLimited",
    "Rule",
]
