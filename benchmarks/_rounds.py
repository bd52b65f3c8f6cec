"""Alternating rounds, and what comes of them: ratios beside their budgets."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks._peers import Child

#: For each figure and contestant the value of every round; a missing round is NaN.
Measured = dict[str, dict[str, list[float]]]
#: Each measurement is the best of so many runs.
TIMES = 3
#: For each case, how many messages a round takes.
Counts = Mapping[str, int]


class Budget(msgspec.Struct, frozen=True):
    """A line of the table: a figure of ours beside somebody else's."""

    what: str
    figure: str
    against: str
    #: Ours may be at most that many times theirs.
    at_most: float | None = None
    #: Theirs must be at least that many times ours: we are so much as fast.
    at_least: float | None = None
    #: The figure it is compared with, where that is another one.
    other: str | None = None
    #: What is compared is the difference to theirs, in µs, which may be at most that.
    extra: float | None = None
    #: No budget: shown as times theirs.
    plain: bool = False
    #: There is nothing to compare with: ours alone may be at most that, as a part of a core.
    alone: float | None = None


class Line(msgspec.Struct, frozen=True):
    """A budget, measured. Times are µs for a message; what `ratio` divides by what, `unit` says."""

    what: str
    ours: float
    against: str
    theirs: float | None
    ratio: float
    lowest: float
    highest: float
    unit: str
    budget: str
    met: bool | None


class Report(msgspec.Struct, frozen=True):
    """What ``--json`` writes."""

    benchmark: str
    when: str
    machine: str
    rounds: int
    clock: str
    lines: list[Line]
    #: Median seconds by figure and contestant.
    figures: dict[str, dict[str, float]]


def arguments(description: str) -> argparse.Namespace:
    """The options that the benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages: to see that it runs")
    parser.add_argument("--rounds", type=int, default=5, help="how often everybody is measured, in turn (5)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures here")
    parser.add_argument("--cpu", action="store_true", help="processor instead of elapsed time: for a busy machine")
    parser.add_argument("--without-peers", action="store_true", help="only what needs no environment of its own")
    return parser.parse_args()


def measure(children: Sequence[Child], counts: Counts, rounds: int, slow: Mapping[str, int]) -> Measured:
    """Every case by everybody in every round, the order turning. `slow`: so many rounds are enough for that case."""
    measured: Measured = {}
    for number in range(rounds):
        turn = number % len(children)
        order = [*children[turn:], *children[:turn]]
        for case, count in counts.items():
            if number >= slow.get(case, rounds):
                continue
            for child in order:
                if case in child.cases:
                    _progress(f"round {number + 1} of {rounds}: {case}, {child.name}")
                    _note(measured, child.name, number, child.measure(case, count, 1 if case in slow else TIMES))
    _progress("")
    return measured


def _note(measured: Measured, name: str, number: int, figures: Mapping[str, float]) -> None:
    for figure, value in figures.items():
        values = measured.setdefault(figure, {}).setdefault(name, [])
        values.extend([float("nan")] * (number - len(values)))
        values.append(value)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def lines(measured: Measured, budgets: Sequence[Budget]) -> list[Line]:
    """The budgets whose contestants took part."""
    return [line for budget in budgets if (line := _line(measured, budget)) is not None]


def _line(measured: Measured, budget: Budget) -> Line | None:
    ours = measured.get(budget.figure, {}).get("amb")
    theirs = measured.get(budget.other or budget.figure, {}).get(budget.against)
    if not ours or not (theirs or budget.alone):
        return None
    values, unit, limit = _compare(ours, theirs or ours, budget)
    middle = statistics.median(values)
    met = _met(middle, budget)
    if not theirs:
        return Line(budget.what, middle, "", None, middle, min(values), max(values), unit, limit, met)
    return Line(
        budget.what, _micro(ours), budget.against, _micro(theirs), middle, min(values), max(values), unit, limit, met
    )


def _compare(ours: Sequence[float], theirs: Sequence[float], budget: Budget) -> tuple[list[float], str, str]:
    """The ratio of every round in which both took part, what it means, and what it should be."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a == a and b == b]
    if budget.alone is not None:
        return [100 * a for a, _ in pairs], "%", f"≤ {100 * budget.alone:g} %"
    if budget.extra is not None:
        return [(a - b) * 1e6 for a, b in pairs], "µs more", f"≤ {budget.extra:g} µs"
    if budget.at_most is not None or budget.plain:
        return [a / b for a, b in pairs], "× the time", "" if budget.at_most is None else f"≤ {budget.at_most:g}×"
    return [b / a for a, b in pairs], "× as fast", "" if budget.at_least is None else f"≥ {budget.at_least:g}×"


def _met(value: float, budget: Budget) -> bool | None:
    if budget.alone is not None:
        return value <= 100 * budget.alone
    most = budget.extra if budget.extra is not None else budget.at_most
    if most is not None:
        return value <= most
    return None if budget.at_least is None else value >= budget.at_least


def _micro(values: Sequence[float]) -> float:
    return statistics.median(value for value in values if value == value) * 1e6


def report(name: str, measured: Measured, budgets: Sequence[Budget], options: argparse.Namespace) -> Report:
    """The whole outcome."""
    figures = {
        figure: {who: _micro(values) / 1e6 for who, values in by.items()} for figure, by in sorted(measured.items())
    }
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    clock = "processor time" if options.cpu else "elapsed time"
    return Report(name, when, machine(), options.rounds, clock, lines(measured, budgets), figures)


def machine() -> str:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, {python}"


def show(outcome: Report) -> None:
    """Print the table."""
    print(f"{outcome.benchmark}: {outcome.machine}")
    print(f"median of {outcome.rounds} alternating rounds (lowest to highest), {outcome.clock} per message\n")
    rows = [("", "AMB", "against", "", "ratio", "", "budget", ""), *(_row(line) for line in outcome.lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(line: Line) -> tuple[str, ...]:
    return (
        line.what,
        f"{line.ours:.2f} {'%' if line.unit == '%' else 'µs'}",
        line.against,
        "" if line.theirs is None else f"{line.theirs:.2f} µs",
        f"{line.ratio:.2f} {line.unit}",
        f"({line.lowest:.2f} to {line.highest:.2f})",
        line.budget,
        {True: "met", False: "NOT MET", None: ""}[line.met],
    )


def finish(outcome: Report, file: Path | None) -> None:
    """Print the table, and write the file that was asked for."""
    show(outcome)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")
