"""``python -m tests.conformance.report [BACKEND…]``: the kit on every first-party backend, one line each.

Starts the servers it needs. Writes ``build/conformance.json``. Ends in 1 if a case failed, a fixture is missing or a
server could not be started.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import msgspec
from amb_core.testing import Report, conform

from tests.servers.process import MissingServer

from .backends import BACKENDS

#: Cases at a time: more leave too little of two processors, which a server uses too, to keep short leases.
JOBS, JOBS_IN_MEMORY = 8, 24
RESULTS = Path(__file__).parents[2] / "build" / "conformance.json"


def run(name: str) -> Report | str:
    """The report of one backend, or why there is none."""
    try:
        with BACKENDS[name]() as rig:
            jobs = JOBS_IN_MEMORY if name == "memory" else JOBS
            return conform(msgspec.structs.replace(rig, name=name), jobs=jobs)
    except (MissingServer, OSError, RuntimeError) as error:  # the next backend is worth a try all the same
        return f"{type(error).__name__}: {error}"


def describe(report: Report) -> list[str]:
    """The line of a backend, and below it whatever is not as it should be."""
    wrong = [outcome for outcome in report.outcomes if outcome.result in ("failed", "unavailable")]
    details = [f"  {outcome.id} {outcome.result}: {outcome.detail.strip()}" for outcome in wrong]
    return [report.line(), *(detail.replace("\n", "\n      ") for detail in details)]


def main(names: list[str]) -> int:
    """Run, print, write. Returns the exit code."""
    unknown = [name for name in names if name not in BACKENDS]
    if unknown:
        print(f"no such backend: {', '.join(unknown)}; there are {', '.join(BACKENDS)}", file=sys.stderr)
        return 2
    logging.getLogger("amb").setLevel(logging.CRITICAL + 1)  # cases fail on purpose; what matters is in the report
    summaries: list[dict[str, str | int | float]] = []
    good = True
    for name in names or BACKENDS:
        began = time.monotonic()
        report = run(name)
        if isinstance(report, str):
            print(f"{name}: not run: {report}", flush=True)
            good = False
            continue
        summaries.append({**report.summary(), "seconds": round(time.monotonic() - began, 1)})
        good = good and report.ok and not report.ids("unavailable")
        print("\n".join(describe(report)), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(summaries)) + b"\n")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
