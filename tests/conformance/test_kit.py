"""The kit cannot be weakened without somebody noticing, and sees what it claims to see."""

from __future__ import annotations

import ast
import inspect
import json
import socket
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest
from amb_core import Capabilities, InMemoryBroker, MessageBus
from amb_core.testing import IDS, Ledger, Outcome, Report, Rig, conform, conformance_suite, rig_for
from amb_core.testing import _case as registry
from amb_core.testing._case import Case, cases
from amb_core.testing._runner import run_case, select
from amb_core.testing._target import Target

#: What each case checked when it was last looked at. To weaken one on purpose: change this file too, and say why.
RECORD = Path(__file__).parent / "cases.json"
SECTIONS = dict(A=15, B=10, C=8, D=15, E=11, F=6, G=12, H=12, I=9, J=6, K=6, L=11, M=7, N=8, O=3)  # noqa: C408
#: Calls that fail a case if something is not so.
CHECKS = {"eventually", "stays", "reaches", "stays_at", "drained", "check"}
CHECKS |= {"receive_raw", "nothing_raw", "event", "stop", "fail_after"}


class Recorded(msgspec.Struct):
    """A case as it was."""

    needs: list[str]
    fixtures: list[str]
    checks: int


def checks_of(run: Any) -> int:
    """How many statements in a case (and in the helpers of its module that it calls) can fail it."""
    module = inspect.getmodule(run)
    seen: set[str] = set()

    def count(function: Any) -> int:
        total = 0
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            total += isinstance(node, ast.Assert | ast.Raise)
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                total += name in CHECKS
                helper = getattr(module, name, None) if isinstance(node.func, ast.Name) else None
                if inspect.isfunction(helper) and helper.__module__ == run.__module__ and name not in seen:
                    seen.add(name)
                    total += count(helper)
        return total

    return count(run)


def record() -> dict[str, Recorded]:
    """What is recorded of every case."""
    return msgspec.json.decode(RECORD.read_bytes(), type=dict[str, Recorded])


def broker() -> InMemoryBroker:
    """A broker for cases that are over soon."""
    return InMemoryBroker(lease=1.0)


# --- the list


def test_the_list_is_the_whole_list() -> None:
    """The 136 cases of CONFORMANCE.md, section by section, and the elections."""
    assert len(IDS) == len(set(IDS)) == sum(SECTIONS.values()) == 136 + 3
    assert tuple(f"{letter}{n}" for letter, size in SECTIONS.items() for n in range(1, size + 1)) == IDS
    assert tuple(cases()) == IDS


def test_a_removed_case_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By everything that would run the rest."""
    monkeypatch.delitem(registry._CASES, "D7")
    for use in (cases, lambda: select(None), lambda: conform(broker(), ids=["A9"]), lambda: conformance_suite(broker)):
        with pytest.raises(AssertionError, match="weakened: D7"):
            use()


def test_a_case_cannot_be_registered_twice_or_under_another_name() -> None:
    """Nor can one be added that is not on the list."""

    async def A1_again(target: Target) -> None: ...

    async def B1_other(target: Target) -> None: ...

    for id, run in (("A1", A1_again), ("A1", B1_other), ("Z1", A1_again)):
        with pytest.raises(AssertionError):
            registry.case(id)(run)


@pytest.mark.parametrize("id", IDS)
def test_no_case_checks_less_than_it_did(id: str) -> None:
    """And none asks for more before it runs."""
    case, recorded = cases()[id], record()[id]
    assert case.run.__module__.startswith("amb_core.testing.cases."), f"{id} was replaced by {case.run}"
    assert set(case.needs) <= set(recorded.needs), f"{id} now needs {case.needs}, and runs on fewer brokers"
    assert set(case.fixtures) <= set(recorded.fixtures), f"{id} now needs {case.fixtures}"
    assert checks_of(case.run) >= recorded.checks > 0, f"{id} checks less than it did"


def test_the_record_is_of_the_same_cases() -> None:
    """No more, no fewer."""
    assert tuple(record()) == IDS


# --- the pytest suite


def test_a_subclass_that_drops_replaces_or_marks_a_case_is_refused() -> None:
    """When the class is made; what is done to it later is found by a test of the suite's own."""
    suite = conformance_suite(broker)
    attempts: list[dict[str, Any]] = [
        {"test_A1": lambda self, request: None},
        {"test_A1": None},
        {"pytestmark": [pytest.mark.skip]},
        {"pytestmark": [pytest.mark.xfail]},
    ]
    for body in attempts:
        with pytest.raises(AssertionError, match="weakens the conformance suite"):
            type("Weaker", (suite,), body)
    type("Same", (suite,), {"helper": 1})
    suite.test_B2 = lambda self, request: None  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="B2"):
        suite().test_the_suite_is_whole()
    del suite.test_B2  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="B2"):
        suite().test_the_suite_is_whole()


def test_a_mark_on_one_case_is_refused() -> None:
    """A skipped case is a missing case."""
    suite = conformance_suite(broker)
    pytest.mark.skip(suite.test_A1)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="A1"):
        suite().test_the_suite_is_whole()


def test_each_test_tells_the_outcome_of_its_case() -> None:
    """Failed fails, with the case's title; refused and unavailable skip, with the reason; passed passes."""
    suite = conformance_suite(broker)
    suite._outcomes = {  # type: ignore[attr-defined]
        "A1": Outcome("A1", "failed", "lost 2 of 100"),
        "A2": Outcome("A2", "refused", "no groups"),
        "A3": Outcome("A3", "passed"),
    }
    request = SimpleNamespace()
    with pytest.raises(AssertionError, match=r"(?s)A1: .*lost 2 of 100"):
        suite().test_A1(request)
    with pytest.raises(pytest.skip.Exception, match="no groups"):
        suite().test_A2(request)
    suite().test_A3(request)


# --- the runner


def test_conform_runs_what_is_asked_for() -> None:
    """Sections and cases by id; an unknown id is refused with advice."""
    told: list[str] = []
    report = conform(broker(), ids=["a9", "N4"], on_outcome=lambda outcome: told.append(outcome.id))
    assert ([outcome.id for outcome in report.outcomes], sorted(told)) == (["A9", "N4"], ["A9", "N4"])
    assert report.ok, report.table()
    assert {case.id[0] for case in select(["B"])} == {"B"}
    with pytest.raises(ValueError, match="A1 to O3, sections from A to O"):
        conform(broker(), ids=["Z9"])


async def attempt(case: Case, rig: Rig | None = None) -> Outcome:
    """Run a case that is not of the suite."""
    return await run_case(rig or rig_for(broker()), case)


async def nothing(target: Target) -> None:
    """Passes."""


def outcome_of(run: Any, **fields: Any) -> Outcome:
    """What comes of `run` as a case."""
    return anyio.run(attempt, Case("A1", "t", run, **fields))


def test_what_a_case_leaves_behind_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket, a thread; and the case is named."""
    left: list[Any] = []

    async def leaves_a_socket(target: Target) -> None:
        left.append(socket.socket())

    async def leaves_a_thread(target: Target) -> None:
        free = threading.Event()
        left.append(free)
        threading.Thread(target=free.wait, name="forgotten", daemon=True).start()

    found = outcome_of(leaves_a_socket)
    left.pop().close()
    assert found.result == "failed" and "socket" in found.detail, found
    found = outcome_of(leaves_a_thread)
    left.pop().set()
    assert found.result == "failed" and "forgotten" in found.detail, found
    assert outcome_of(nothing).result == "passed"


def test_a_task_that_a_case_leaves_behind_fails_it() -> None:
    """Also one that somebody else owns."""

    async def main() -> Outcome:
        from amb_core.testing._leaks import watch_tasks

        watch_tasks()
        import asyncio

        left: list[Any] = []

        async def leaves_a_task(target: Target) -> None:
            left.append(asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="forgotten"))

        try:
            return await attempt(Case("A1", "t", leaves_a_task))
        finally:
            left.pop().cancel()

    found = anyio.run(main)
    assert found.result == "failed" and "forgotten" in found.detail, found


def test_a_case_that_hangs_fails_in_time() -> None:
    """By its own limit."""

    async def hangs(target: Target) -> None:
        await anyio.sleep_forever()

    found = outcome_of(hangs, within=0.2)
    assert (found.result, found.detail.splitlines()[0]) == ("failed", "not finished within 0.2 s")


def test_a_missing_fixture_is_never_a_pass() -> None:
    """It is listed; a rig that says it is complete fails; one whose broker has no such thing says why."""
    case = Case("A1", "t", nothing, fixtures=("strict",))
    inner = broker()
    remote = msgspec.structs.replace(inner.capabilities, single_process=False)

    class Remote:
        capabilities = remote

        def connect(self) -> Any:
            return inner.connect()

    rig = Rig(make=Remote)
    assert anyio.run(attempt, case, rig).result == "unavailable"
    assert anyio.run(attempt, case, msgspec.structs.replace(rig, complete=True)).result == "failed"
    reason = {"strict": "topics need no making"}
    found = anyio.run(attempt, case, msgspec.structs.replace(rig, complete=True, absent=reason))
    assert (found.result, found.detail) == ("refused", "topics need no making")


class Modest(InMemoryBroker, frozen=True):
    """Has groups and does not say so."""

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, groups=False)


def test_what_is_not_declared_has_to_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus that does it all the same, or connects before it refuses, fails the case."""
    assert conform(Modest(), ids=["C1"]).ids("refused") == ["C1"]
    monkeypatch.setattr("amb_core._assemble.require", lambda broker, what, test: None)
    (outcome,) = conform(Modest(), ids=["C1"]).outcomes
    assert outcome.result == "failed" and "connected before it refused" in outcome.detail, outcome


def test_a_report_says_how_it_went() -> None:
    """In a line, in a table, in numbers."""
    outcomes = [
        Outcome("A1", "passed", "", 1.0),
        Outcome("A2", "failed", "lost\nmore", 2.0),
        Outcome("A3", "refused", "no", 0.0),
    ]
    report = Report("acme", outcomes, 3.2)
    assert report.line() == "acme: 1 passed, 1 refused, 1 failed in 3 s; failed: A2"
    assert not report.ok
    assert "A2   failed" in report.table() and "more" not in report.table()
    assert report.summary() == {"backend": "acme", "passed": 1, "refused": 1, "failed": 1, "seconds": 3.2}
    assert json.loads(msgspec.json.encode(report.summary()))


# --- the accounting rule


async def ledger_with(deliveries: int, ids: list[str] | None = None) -> tuple[Ledger, Any]:
    """A ledger with one publish, and that many calls of its recorder."""
    from amb_core import Message

    ledger, bus = Ledger("p", False), MessageBus(broker())
    seen = ledger.recorder()
    await ledger.publish(bus, "t", 1)
    for id in ids or ["p-1"] * deliveries:
        await seen(Message("t", 1, id=id))
    await bus.disconnect()
    return ledger, seen


@pytest.mark.parametrize(
    ("deliveries", "ids", "wrong"),
    [
        (0, None, "lost 1 of 1"),
        (2, None, "1 duplicates, 0 allowed"),
        (0, ["p-1", "other"], "nothing that was published"),
    ],
)
def test_the_ledger_counts(deliveries: int, ids: list[str] | None, wrong: str) -> None:
    """What is lost, what came twice, what came from nowhere."""
    ledger, seen = anyio.run(ledger_with, deliveries, ids)
    with pytest.raises(AssertionError, match=wrong):
        ledger.check(seen)


def test_the_ledger_is_content_with_once() -> None:
    """And with as many duplicates as a fault may make."""
    ledger, seen = anyio.run(ledger_with, 1)
    ledger.check(seen)
    ledger, seen = anyio.run(ledger_with, 3)
    ledger.check(seen, duplicates=2)
