"""The kit notices: brokers that do one thing wrong fail the cases that are about it."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from amb_core.broker import Broker
from amb_core.testing import Outcome, Rig
from amb_core.testing._case import cases
from amb_core.testing._runner import run_case

from .saboteurs import SABOTEURS, honest

pytestmark = pytest.mark.timeout(300)
Outcomes = dict[tuple[str, str], Outcome]

WANTED = [(name, id) for name, saboteur in SABOTEURS.items() for id in saboteur.caught_by]


async def attempts(wanted: list[tuple[str, str]], make: Callable[[str], Broker]) -> Outcomes:
    """Run cases against brokers, many at a time."""
    outcomes: Outcomes = {}
    limit = anyio.CapacityLimiter(10)

    async def attempt(name: str, id: str) -> None:
        async with limit:
            rig = Rig(make=lambda: make(name), quick=True)
            outcomes[name, id] = await run_case(rig, cases()[id], check_files=False)

    async with anyio.create_task_group() as group:
        for name, id in wanted:
            group.start_soon(attempt, name, id)
    return outcomes


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Everything that is tested below, run at once: a case that waits for what never comes takes long to fail."""
    return anyio.run(attempts, WANTED, lambda name: SABOTEURS[name].make())


@pytest.mark.parametrize(("name", "id"), WANTED)
def test_a_saboteur_is_caught(name: str, id: str, outcomes: Outcomes) -> None:
    """By the case that names what it does."""
    outcome = outcomes[name, id]
    assert outcome.result == "failed", f"{id} is {outcome.result} on a broker that {name}"


def test_the_honest_wrapper_passes_them_all() -> None:
    """So it is the sabotage that fails above."""
    ids = sorted({id for _, id in WANTED} - {"G1"})
    found = anyio.run(attempts, [("honest", id) for id in ids], lambda name: honest())
    assert {id: outcome.detail for (_, id), outcome in found.items() if outcome.result != "passed"} == {}
