"""A kernel that remembers its audit records."""

from __future__ import annotations

from typing import Any

from amb_core import Message
from amb_kernel import AuditRecord, KernelSpace, Policy

from tests.core._help import Collector, eventually

__all__ = ["Records", "collecting", "eventually", "kernel_with"]


class Records(list[AuditRecord]):
    """An audit sink."""

    def __call__(self, record: AuditRecord) -> None:
        self.append(record)

    def of(self, event: str) -> list[AuditRecord]:
        """Those of one kind."""
        return [record for record in self if record.event == event]


def kernel_with(*rules: dict[str, Any], **options: Any) -> tuple[KernelSpace, Records]:
    """A kernel in memory under these rules, and what it records."""
    records = Records()
    policies = [Policy(name="test", rules=rules)] if rules else []  # type: ignore[arg-type]
    return KernelSpace(policies, audit_sink=records, **options), records


class _Async(Collector):
    async def __call__(self, message: Message) -> None:
        await super().__call__(message)


def collecting() -> Collector:
    """A handler that keeps what it gets."""
    return _Async()
