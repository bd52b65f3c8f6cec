"""The books in numbers, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .messages import Finding, Obeyed
from .watcher import Books, Dead


class Spread(msgspec.Struct, frozen=True):
    """How many there were, and their median and 95th percentile in milliseconds."""

    count: int
    p50_ms: float
    p95_ms: float


class Overtaking(msgspec.Struct, frozen=True):
    """What the CRITICAL lane did for one order: how much work had been announced before it, and how much of that
    was begun only after it."""

    order: int
    before: int
    overtook: int


class Summary(msgspec.Struct, frozen=True):
    """What happened."""

    topics: dict[str, Spread]
    latencies: dict[str, Spread]
    overtaking: list[Overtaking]
    retries: dict[str, int]
    reviews: int
    objections: int
    dead: list[Dead]
    announced: int
    handled: int
    handled_twice: int
    left_over: int
    orders: int
    orders_lost: int
    lost: list[str]
    unheard: list[str]
    complete: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Everything that was announced was handled or is a dead letter."""
        accounted = self.announced == self.handled + len(self.dead)
        return self.complete and accounted and not self.lost and not self.unheard and not self.orders_lost


def summarize(books: Books, seconds: float) -> Summary:
    """The books in numbers. Work and orders of an earlier run, cut short, are counted apart (`left_over`)."""
    ours = {ident: finding for ident, finding in books.findings.items() if ident in books.manifest}
    # Reported and then not settled, it may come again and fail: done is done.
    dead = {ident: dead for ident, dead in books.dead.items() if ident in books.manifest and ident not in ours}
    reports = [report for ident, report in books.reports.items() if ident in books.orders]
    reviews = [finding for finding in ours.values() if finding.opinions]
    first_tries = [finding for finding in ours.values() if finding.attempt == 1]
    return Summary(
        topics={topic: spread(delays) for topic, delays in sorted(books.heard.items())}
        | {"(dead letters)": Spread(len(dead), 0, 0)},
        latencies={
            "work: announced → begun": spread(finding.begun - finding.announced for finding in first_tries),
            "order: given → begun": spread(report.begun - report.given for report in reports),
            "review: asked → answered": spread(f.review for f in reviews if f.review is not None),
        },
        overtaking=overtaking(reports, first_tries),
        retries={
            "succeeded": sum(finding.attempt - 1 for finding in ours.values()),
            "failed": sum(letter.attempts - 1 for letter in dead.values()),
        },
        reviews=len(reviews),
        objections=sum(not opinion.content for finding in reviews for opinion in finding.opinions),
        dead=list(dead.values()),
        announced=len(books.manifest),
        handled=len(ours),
        handled_twice=sum(books.handled[ident] > 1 for ident in ours),
        left_over=len((books.findings.keys() | books.dead.keys()) - books.manifest.keys())
        + len(books.reports.keys() - books.orders),
        orders=len(books.orders),
        orders_lost=len(books.disobeyed),
        lost=sorted(books.lost.values()),
        unheard=sorted(books.unheard.values()),
        complete=books.complete,
        seconds=round(seconds, 3),
    )


def spread(seconds: Iterable[float]) -> Spread:
    """Count, median and 95th percentile."""
    values = sorted(seconds)
    if not values:
        return Spread(0, 0.0, 0.0)
    middle, high = values[len(values) // 2], values[min(len(values) - 1, len(values) * 95 // 100)]
    return Spread(len(values), round(middle * 1000, 1), round(high * 1000, 1))


def overtaking(reports: Iterable[Obeyed], first_tries: Iterable[Finding]) -> list[Overtaking]:
    """For each order, by the clocks of publisher and handler: what waited, and what it overtook."""
    tries = [(finding.announced, finding.begun) for finding in first_tries]
    return [
        Overtaking(
            report.number,
            sum(announced < report.given for announced, _ in tries),
            sum(announced < report.given and begun > report.begun for announced, begun in tries),
        )
        for report in sorted(reports, key=lambda report: report.number)
    ]


def text(summary: Summary) -> str:
    """The summary for people."""
    return "\n".join(
        [*_topics(summary), *_latencies(summary), *_governor(summary), *_failures(summary), *_account(summary)]
    )


def _rows(title: str, rows: dict[str, Spread]) -> Iterable[str]:
    yield f"\n{title:<34}{'count':>8}{'p50':>12}{'p95':>12}"
    for name, row in rows.items():
        times = f"{row.p50_ms:>9.1f} ms{row.p95_ms:>9.1f} ms" if row.p95_ms or row.p50_ms else ""
        yield f"  {name:<32}{row.count:>8}{times}"


def _topics(summary: Summary) -> Iterable[str]:
    yield from _rows("Said, by topic; until heard", summary.topics)


def _latencies(summary: Summary) -> Iterable[str]:
    yield from _rows("Waited", summary.latencies)


def _governor(summary: Summary) -> Iterable[str]:
    most = max(summary.overtaking, key=lambda each: each.overtook, default=None)
    if most is None:
        yield "\nGovernor: no orders"
        return
    each = sum(one.overtook for one in summary.overtaking) / len(summary.overtaking)
    yield (
        f"\nGovernor: {summary.orders} orders on the CRITICAL lane overtook {each:.0f} waiting pieces of work on "
        f"average; order {most.order} began before {most.overtook} of the {most.before} announced ahead of it"
    )


def _failures(summary: Summary) -> Iterable[str]:
    yield f"Reviews: {summary.reviews} commits reviewed, {summary.objections} objections"
    well, badly = summary.retries["succeeded"], summary.retries["failed"]
    yield f"Retries: {well + badly} ({well} led to success, {badly} to a dead letter)"
    yield f"Dead letters: {len(summary.dead)}"
    shown = summary.dead[:5]
    yield from (
        f"  {dead.name}: {dead.error[:100]} ({dead.attempts} attempt{'s' * (dead.attempts > 1)})" for dead in shown
    )
    if len(summary.dead) > len(shown):
        yield f"  … and {len(summary.dead) - len(shown)} more"


def _account(summary: Summary) -> Iterable[str]:
    if summary.left_over:
        yield f"Left over from an earlier run, and now done: {summary.left_over}"
    if not summary.complete:
        yield "LOST: what the reader or the governor said at the end, or what it was about, was not heard"
    for what, names in (
        ("neither handled nor a dead letter", summary.lost),
        ("not heard by the watcher", summary.unheard),
    ):
        if names:
            yield f"LOST, {what}: {len(names)}"
            yield from (f"  {name}" for name in names[:20])
    if summary.orders_lost:
        yield f"LOST: {summary.orders_lost} orders were not obeyed"
    yield (
        f"Account: {summary.announced} announced = {summary.handled} handled + {len(summary.dead)} dead letters + "
        f"{len(summary.lost)} lost; {summary.handled_twice} handled twice; {summary.seconds:.1f} s"
    )
