"""AMB on a real Redis, against redis-py used well and against FastStream.

    python -m benchmarks.redis [--quick] [--rounds N] [--json FILE] [--without-peers]

One server of our own, without its log on disk, the same 100 bytes, a process and an environment for everybody, in
turns. What counts is the ratio within a round: docs/performance.md says how to read it.
"""

from __future__ import annotations

import sys

import redis

from benchmarks._peers import Contestant, Unavailable, children
from benchmarks._rounds import Budget, arguments, finish, measure, report
from tests.servers.process import MissingServer
from tests.servers.redis import RedisServer, alone

COUNTS = {
    "publish": 5_000,
    "consume": 10_000,
    "consume inline": 10_000,
    "broadcast": 5_000,
    "one at a time": 500,
    "request": 500,
    "requests": 64 * 20,
    "stream request": 300,
    "stream requests": 64 * 20,
}

BUDGETS = [
    Budget("publish, 100 at once", "publish", "redis-py", at_least=0.9),
    Budget("consume and acknowledge, 100 at once", "consume", "redis-py", at_least=0.9),
    Budget("the same, theirs one handler after the other", "consume", "redis-py", plain=True, other="consume inline"),
    Budget("processor time of that", "consume cpu", "redis-py", extra=10, other="consume inline cpu"),
    Budget("pub/sub: publish and handle, 100 at once", "broadcast", "redis-py", at_least=0.9),
    Budget("pub/sub: publish to handler, one at a time", "e2e", "redis-py", at_most=1.1),
    Budget("pub/sub: request, one at a time", "request", "redis-py", plain=True),
    Budget("pub/sub: request, 64 in flight", "requests", "redis-py", plain=True),
    Budget("streams: request, one at a time", "stream request", "redis-py", plain=True, other="request"),
    Budget("streams: request, 64 in flight", "stream requests", "redis-py", plain=True, other="requests"),
    Budget("publish, 100 at once", "publish", "FastStream", at_least=2),
    Budget("consume and acknowledge, 100 at once", "consume", "FastStream", at_least=2),
    Budget("processor time of that", "consume cpu", "FastStream"),
    Budget("pub/sub: publish and handle, 100 at once", "broadcast", "FastStream", at_least=2),
    Budget("pub/sub: publish to handler, one at a time", "e2e", "FastStream"),
    Budget("pub/sub: request, one at a time", "request", "FastStream"),
    Budget("pub/sub: request, 64 in flight", "requests", "FastStream"),
]


def contestants(server: RedisServer, peers: bool) -> list[Contestant]:
    """Everybody with a database of their own."""
    base = f"redis://{server.host}:{server.port}"
    ours = [
        Contestant("redis-py", "redis_raw", arguments=(f"{base}/1",)),
        Contestant("amb", "redis_amb", arguments=(f"{base}/2",)),
    ]
    needs = ("faststream[redis]==0.7.8", "hiredis")
    return [*ours, *([Contestant("FastStream", "redis_faststream", needs, 10, (f"{base}/3",))] if peers else [])]


def main() -> None:
    options = arguments("AMB on Redis against redis-py and FastStream, as ratios")
    counts = {case: max(1, count // 10) for case, count in COUNTS.items()} if options.quick else COUNTS
    try:
        with alone() as server:
            with redis.Redis(port=server.port) as client:
                client.config_set("appendonly", "no")  # what a disk takes is no ratio of ours
            with children(
                contestants(server, not options.without_peers), *(["--cpu"] if options.cpu else [])
            ) as running:
                measured = measure(running, counts, options.rounds, {})
    except (MissingServer, Unavailable) as reason:
        sys.exit(f"benchmarks.redis: {reason}")
    finish(report("redis", measured, BUDGETS, options), options.json)


if __name__ == "__main__":
    main()
