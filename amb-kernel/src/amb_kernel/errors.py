"""What the kernel raises, beside the errors of `amb_core`."""

from __future__ import annotations

from amb_core.errors import AccessDenied, AmbError, DecodeError

__all__ = ["AuditFailed", "KernelNotRunning", "MessageRefused", "PolicyDenied", "RateLimited"]


class PolicyDenied(AccessDenied):
    """A policy refuses this send or subscription; nothing was sent. The text says why and who may; `rule`: which rule
    it was, None: the default action."""

    def __init__(self, text: str, rule: str | None = None) -> None:
        super().__init__(text)
        self.rule = rule


class RateLimited(PolicyDenied):
    """The rule's rate limit is used up; nothing was sent. `retry_after`: seconds until there is room again."""

    def __init__(self, text: str, rule: str, retry_after: float) -> None:
        super().__init__(text, rule)
        self.retry_after = retry_after


class MessageRefused(DecodeError):
    """A message that arrived was turned away by a policy or a validator. It is not tried again: a request is
    answered with this error, anything else becomes a dead letter."""


class AuditFailed(AmbError):
    """A send that must be recorded could not be; it was not sent."""


class KernelNotRunning(AmbError, RuntimeError):
    """This needs a running kernel: use ``async with kernel``, or ``await kernel.start()``."""
