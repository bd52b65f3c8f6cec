"""Runs cases: many at a time in one event loop, then those that need it for themselves."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import anyio

from .._bus import MessageBus
from ..broker import Broker
from ._case import Case, LacksFixture, cases
from ._gates import GATES, refuses
from ._leaks import Snapshot, no_tasks, running_case, watch_tasks
from ._report import Outcome, Report
from ._target import Backend, Rig, Target, rig_for

#: Cases that run at the same time unless told otherwise.
JOBS = 16
#: Seconds of lease up to which the deadlines of the cases hold; they grow with longer ones.
LEASE = 2.0
Told = Callable[[Outcome], None]


def conform(
    subject: Rig | Broker | str,
    *,
    ids: Iterable[str] | None = None,
    jobs: int = JOBS,
    backend: Backend = "asyncio",
    on_outcome: Told | None = None,
) -> Report:
    """Run the conformance cases against a broker, a broker's name or URL, or a `Rig`, and report.

    Blocks; starts an event loop of its own. `ids` picks cases or whole sections (``["A", "D7"]``).
    `on_outcome` is called as each case ends. Raises: ValueError for an unknown id.
    """
    rig = _rig(subject)
    chosen = select(ids)
    options: dict[str, Any] = {"use_uvloop": True} if backend == "uvloop" else {}

    async def main() -> Report:
        return await _run(rig, chosen, jobs, on_outcome or (lambda outcome: None))

    return anyio.run(main, backend="trio" if backend == "trio" else "asyncio", backend_options=options)


def _rig(subject: Rig | Broker | str) -> Rig:
    if isinstance(subject, Rig):
        return subject
    return rig_for(MessageBus(subject).broker)


def select(ids: Iterable[str] | None) -> list[Case]:
    """The cases with these ids or in these sections, in order. Raises: ValueError for an unknown one."""
    every = cases()
    wanted = set(every) if ids is None else {id.upper() for id in ids}
    unknown = [id for id in wanted if id not in every and id not in {known[0] for known in every}]
    if unknown:
        first, *_, last = every
        raise ValueError(
            f"no such conformance case: {', '.join(sorted(unknown))}; ids run from {first} to {last}, sections from "
            f"{first[0]} to {last[0]}"
        )
    return [case for id, case in every.items() if id in wanted or id[0] in wanted]


async def _run(rig: Rig, chosen: list[Case], jobs: int, told: Told) -> Report:
    watch_tasks()
    began = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    limit = anyio.CapacityLimiter(jobs)
    before = Snapshot()

    async def one(case: Case, check: bool) -> None:
        async with limit:
            outcomes[case.id] = await run_case(rig, case, check_files=check)
        told(outcomes[case.id])

    async with anyio.create_task_group() as group:
        # Those that may take long begin first, or they would be what everybody waits for in the end.
        for case in sorted(chosen, key=lambda case: -case.within):
            if not case.exclusive:
                group.start_soon(one, case, jobs == 1)
    for case in chosen:
        if case.exclusive:
            await one(case, True)
    try:
        await before.check()
    except AssertionError as error:
        # Somebody of those that ran together left it; nobody of those that ran alone.
        together = next((case.id for case in chosen if not case.exclusive), None)
        if together is not None and jobs > 1:
            outcomes[together] = Outcome(together, "failed", f"one of the cases that ran together: {error}")
    return Report(
        rig.name or type(rig.make()).__name__, [outcomes[case.id] for case in chosen], time.monotonic() - began
    )


async def run_case(rig: Rig, case: Case, *, check_files: bool = True) -> Outcome:
    """What comes of one case. Never raises, except when cancelled."""
    began = time.monotonic()
    try:
        refusal = await _refusal(rig, case)
        if refusal is not None:
            return Outcome(case.id, refusal[0], refusal[1], time.monotonic() - began)
        await _attempt(rig, case, check_files)
    except Exception as error:
        single = innermost(error)
        if isinstance(single, LacksFixture) and (reason := rig.has_no(str(single))):
            return Outcome(case.id, "refused", reason, time.monotonic() - began)
        if isinstance(single, LacksFixture) and not rig.complete:
            return Outcome(case.id, "unavailable", f"the rig has no {single!s}", time.monotonic() - began)
        return Outcome(case.id, "failed", explain(single), time.monotonic() - began)
    return Outcome(case.id, "passed", "", time.monotonic() - began)


async def _refusal(rig: Rig, case: Case) -> tuple[Any, str] | None:
    broker = rig.make()
    for need in case.needs:
        gate = GATES[need]
        if not gate.holds(broker.capabilities):
            await refuses(broker, gate, "conformance.refused")
            return "refused", gate.reason
    for fixture in case.fixtures:
        if reason := rig.has_no(fixture):
            return "refused", reason
        if rig.lacks(fixture):
            return ("failed" if rig.complete else "unavailable"), f"the rig has no {fixture!r}"
    return None


async def _attempt(rig: Rig, case: Case, check_files: bool) -> None:
    label = f"{case.id}/{time.monotonic_ns()}"
    before = Snapshot()
    within = case.within * max(1.0, (rig.make().capabilities.lease or 0.0) / LEASE)
    with anyio.move_on_after(within) as scope:
        # A task of its own gives the case a context of its own, and waits for what it starts.
        async with anyio.create_task_group() as group:
            group.start_soon(_labelled, rig, case, label)
    assert not scope.cancelled_caught, f"not finished within {within:g} s"
    await no_tasks(label)
    if check_files:
        await before.check()


async def _labelled(rig: Rig, case: Case, label: str) -> None:
    running_case.set(label)
    async with AsyncExitStack() as stack:
        target = Target(rig, case.id, stack)
        if target.capabilities.single_process and not target.capabilities.durable:
            # Such a broker may forget everything when nobody is connected; a server would still be there.
            await stack.enter_async_context(target.broker.connect())
        await case.run(target)


def innermost(error: BaseException) -> BaseException:
    """What is inside groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def explain(error: BaseException) -> str:
    """The reason in one line, then where, for people."""
    text = str(error) if isinstance(error, AssertionError) and str(error) else f"{type(error).__name__}: {error}"
    return text + "\n" + "".join(traceback.format_exception(error))
