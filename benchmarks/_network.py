"""A benchmark of a broker behind a network: its raw client, AMB and FastStream in turns, one server for all of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from benchmarks._drivers._child import AT_ONCE
from benchmarks._drivers._network import SIZES
from benchmarks._peers import Contestant, Unavailable, children
from benchmarks._rounds import Budget, arguments, finish, measure, report
from tests.servers.process import MissingServer

Server = TypeVar("Server")

FASTSTREAM = "FastStream"
#: How many messages a round takes, by what is done and how many at once.
_COUNTS = {
    ("publish", 1): 300,
    ("publish", AT_ONCE): 4000,
    ("consume", 1): 1000,
    ("consume", AT_ONCE): 4000,
    ("request", 1): 200,
    ("request", AT_ONCE): 2000,
}
_WORDS = {"publish": "publish, confirmed", "consume": "consume and acknowledge", "request": "request and reply"}


def counts(fewer: int) -> dict[str, int]:
    """How many messages each case takes."""
    return {
        f"{kind} {at_once} {size}": max(AT_ONCE, count // fewer) if at_once > 1 else max(10, count // fewer)
        for (kind, at_once), count in _COUNTS.items()
        for size in SIZES
    }


def budgets(raw: str, peers: Sequence[str] = (FASTSTREAM,)) -> list[Budget]:
    """A line for every case and contestant: 0.9 times the raw client, twice a peer, 10 µs of processor more."""
    found = list[Budget]()
    for kind, at_once in _COUNTS:
        for size in SIZES:
            case = f"{kind} {at_once} {size}"
            what = f"{_WORDS[kind]}, {at_once} at once, {size}"
            if kind == "request":
                found.append(Budget(what, case, raw, plain=True))
            else:
                found.append(Budget(what, case, raw, at_least=0.9 if at_once > 1 else None))
            if kind == "consume":
                found.append(Budget("processor time of that", f"{case} cpu", raw, extra=10))
            found += [Budget(what, case, peer, at_least=2 if at_once > 1 else None) for peer in peers]
    return found


def main(
    name: str,
    server: AbstractContextManager[Server],
    contestants: Callable[[Server], Sequence[Contestant]],
    *,
    fewer: int = 1,
) -> None:
    """Measure and print. The first contestant is the raw client; `fewer`: so many times fewer messages."""
    options = arguments(f"AMB on {name} against its raw client and FastStream, as ratios")
    try:
        with server as running:
            taking_part = [each for each in contestants(running) if not (options.without_peers and each.installs)]
            with children(taking_part, *(["--cpu"] if options.cpu else [])) as processes:
                cases = counts(fewer * (10 if options.quick else 1))
                once = (
                    dict.fromkeys(cases, options.rounds) if options.quick else {}
                )  # opening takes longer than measuring
                measured = measure(processes, cases, options.rounds, once)
    except (MissingServer, Unavailable) as reason:
        sys.exit(f"benchmarks.{name}: {reason}")
    finish(report(name, measured, budgets(taking_part[0].name), options), options.json)


def amb(broker: str, **options: object) -> Contestant:
    """AMB on the broker of that class, with its options."""
    return Contestant("amb", "network_amb", arguments=(broker, json.dumps(options)))


def faststream(extra: str, module: str, address: str) -> Contestant:
    """FastStream on the broker of that module, in an environment of its own."""
    return Contestant(FASTSTREAM, "network_faststream", (f"faststream[{extra}]==0.7.8",), arguments=(module, address))
