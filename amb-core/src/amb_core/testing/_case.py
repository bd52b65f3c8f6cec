"""The register of cases."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from ._ids import IDS, SECTIONS

if TYPE_CHECKING:
    from ._target import Target

Run = Callable[["Target"], Awaitable[None]]
#: What a case needs that is not the broker's doing: see `Rig`.
Fixture = Literal["control", "proxy", "processes", "impostor", "restricted", "destroy", "capped", "strict"]


class LacksFixture(Exception):
    """A case found out while running that the rig lacks something."""


class Case(msgspec.Struct, frozen=True):
    """One thing a broker must do."""

    id: str
    #: One sentence.
    title: str
    run: Run
    needs: tuple[str, ...] = ()
    fixtures: tuple[Fixture, ...] = ()
    #: Not together with others: it restarts the server, blocks the event loop, or measures.
    exclusive: bool = False
    #: Seconds after which it has failed.
    within: float = 60.0


_CASES: dict[str, Case] = {}


def case(
    id: str,
    *,
    needs: str | tuple[str, ...] = (),
    fixtures: Fixture | tuple[Fixture, ...] = (),
    exclusive: bool = False,
    within: float = 60.0,
) -> Callable[[Run], Run]:
    """Register the decorated function, whose name begins with the id, as the case `id`."""

    def register(run: Run) -> Run:
        name = getattr(run, "__name__", "")
        assert name.startswith(f"{id}_"), f"{name} is not the case {id}"
        assert id in IDS and id not in _CASES, f"{id} is unknown or taken"
        needed = (needs,) if isinstance(needs, str) else needs
        held = (fixtures,) if isinstance(fixtures, str) else fixtures
        title = (run.__doc__ or name).strip().splitlines()[0]
        _CASES[id] = Case(id, title, run, needed, held, exclusive or "control" in held, within)
        return run

    return register


def cases() -> dict[str, Case]:
    """Every case by id, in the order of the list. Raises: AssertionError if one is missing."""
    for module in MODULES:
        importlib.import_module(f"{__package__}.cases.{module}")
    missing = [id for id in IDS if id not in _CASES]
    assert not missing, f"the suite was weakened: {', '.join(missing)} missing"
    return {id: _CASES[id] for id in IDS}


MODULES = (
    "a_pubsub",
    "b_wildcards",
    "c_groups",
    "d_settling",
    "e_retries",
    "f_order",
    "g_durability",
    "h_requests",
    "i_headers",
    "j_serialization",
    "k_concurrency",
    "l_shutdown",
    "m_backpressure",
    "n_errors",
    "o_elections",
)
assert [name[0].upper() for name in MODULES] == list(SECTIONS)
