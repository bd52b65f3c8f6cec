"""AMB in one process, against the least that it could cost and against what its users have instead.

    python -m benchmarks.memory [--quick] [--rounds N] [--json FILE] [--without-peers]

Everybody publishes the same 100 bytes, in a process and environment of its own, in turns. What counts is the ratio
within a round, never the time: docs/performance.md says how to read it.
"""

from __future__ import annotations

import sys

from benchmarks._peers import Contestant, Unavailable, children
from benchmarks._rounds import Budget, arguments, finish, measure, report

FLOOR = Contestant("floor", "floor")
AMB = Contestant("amb", "amb")
OLD = Contestant("amb-core 0.1.0", "amb_core_old", ("amb-core==0.1.0",))
FASTSTREAM = Contestant("FastStream", "faststream_memory", ("faststream[redis]==0.7.8", "hiredis"), fewer=10)

COUNTS = {
    "publish": 5_000,
    "one at a time": 3_000,
    "pump": 10_000,
    "request": 2_000,
    "requests": 64 * 40,
    "idle": 1,
    "ten patterns": 5_000,
    "many patterns": 5_000,
}
SLOW = {"idle": 1, "ten patterns": 1, "many patterns": 1}

BUDGETS = [
    Budget("publish until handled, one at a time", "cycle", "floor", at_most=1.5),
    Budget("of that, until the handler starts", "e2e", "floor", plain=True),
    Budget("request, one at a time", "request", "floor", at_most=1.5),
    Budget("pump, one subscriber", "pump", "floor", at_most=3),
    Budget("request, 64 in flight", "requests", "floor", at_most=2),
    Budget("idle CPU, 200 used topics", "idle", "", alone=0.001),
    Budget("one of 10,000 patterns, against one of 10", "many patterns", "amb", at_most=2, other="ten patterns"),
    Budget("publish, nobody subscribed", "publish", "amb-core 0.1.0", at_least=3),
    Budget("pump, one subscriber", "pump", "amb-core 0.1.0", at_least=3),
    Budget("publish until handled, one at a time", "cycle", "amb-core 0.1.0"),
    Budget("request, one at a time", "request", "amb-core 0.1.0"),
    Budget("request, 64 in flight", "requests", "amb-core 0.1.0", at_least=2),
    Budget("publish until handled, one at a time", "cycle", "FastStream"),
    Budget("pump, one subscriber", "pump", "FastStream"),
    Budget("request, one at a time", "request", "FastStream"),
]


def main() -> None:
    options = arguments("AMB's memory broker against its floor and its peers, as ratios")
    contestants = [FLOOR, AMB] if options.without_peers else [FLOOR, AMB, OLD, FASTSTREAM]
    counts = {case: max(1, count // 10) for case, count in COUNTS.items()} if options.quick else dict(COUNTS)
    if options.quick:
        del counts["ten patterns"], counts["many patterns"]  # subscribing 10,000 times is what takes long
    try:
        with children(contestants, *(["--cpu"] if options.cpu else [])) as running:
            measured = measure(running, counts, options.rounds, SLOW)
    except Unavailable as reason:
        sys.exit(f"benchmarks.memory: {reason}")
    finish(report("memory", measured, BUDGETS, options), options.json)


if __name__ == "__main__":
    main()
