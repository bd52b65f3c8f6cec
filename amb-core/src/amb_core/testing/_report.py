"""What came of a run."""

from __future__ import annotations

from typing import Literal

import msgspec

from ._case import cases

Result = Literal["passed", "refused", "failed", "unavailable"]


class Outcome(msgspec.Struct, frozen=True):
    """What came of one case.

    ``refused``: the broker does not declare what the case is about, and (where that can be asked for) the
    bus refused it before any I/O; `detail` says which. ``unavailable``: the harness lacks a fixture.
    """

    id: str
    result: Result
    detail: str = ""
    seconds: float = 0.0


class Report(msgspec.Struct, frozen=True):
    """The outcomes of one broker."""

    backend: str
    outcomes: list[Outcome]
    seconds: float

    def ids(self, result: Result) -> list[str]:
        """The ids of the cases that ended so."""
        return [outcome.id for outcome in self.outcomes if outcome.result == result]

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not self.ids("failed")

    def line(self) -> str:
        """One line for people."""
        counts = ", ".join(f"{len(self.ids(result))} {result}" for result in ("passed", "refused", "failed"))
        missing = self.ids("unavailable")
        lacking = f"; {len(missing)} without a fixture: {' '.join(missing)}" if missing else ""
        failed = f"; failed: {' '.join(self.ids('failed'))}" if not self.ok else ""
        return f"{self.backend}: {counts} in {self.seconds:.0f} s{failed}{lacking}"

    def table(self) -> str:
        """One line a case."""
        titles = cases()
        lines = []
        for outcome in self.outcomes:
            detail = f" - {outcome.detail.splitlines()[0]}" if outcome.detail else ""
            lines.append(
                f"{outcome.id:<4} {outcome.result:<11} {outcome.seconds:6.2f} s  {titles[outcome.id].title}{detail}"
            )
        return "\n".join([*lines, self.line()])

    def summary(self) -> dict[str, str | int | float]:
        """The counts, for machines."""
        return {
            "backend": self.backend,
            "passed": len(self.ids("passed")),
            "refused": len(self.ids("refused")),
            "failed": len(self.ids("failed")),
            "seconds": round(self.seconds, 1),
        }
