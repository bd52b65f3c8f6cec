"""The conformance cases as pytest tests, one per case id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..broker import Broker
from ._case import cases
from ._ids import IDS
from ._report import Outcome
from ._runner import JOBS, conform, select
from ._target import Backend, Rig, rig_for

__all__ = ["conformance_suite"]

_WHOLE = "test_the_suite_is_whole"


def conformance_suite(
    make: Callable[[], Broker | Rig],
    *,
    sections: str = "",
    jobs: int = JOBS,
    backend: Backend = "asyncio",
) -> type:
    """A class with one test per case id (``test_A1`` … ``test_N8``), to be assigned to a name that pytest collects.

    `make` is called when the first test runs: a broker, or a `Rig`. The selected cases run together, `jobs` at a
    time; each test then reports its own outcome. A case about what the broker does not declare (which the bus must
    have refused, where that can be asked for) and a case without a fixture are skipped with their reason; a rig that
    says it is complete fails for a missing fixture. `sections`
    ("ABC") leaves out the others, for a second event loop. A subclass that replaces or drops a case is refused.
    """
    wanted = [case.id for case in select(list(sections) or None)]
    namespace: dict[str, Any] = {f"test_{id}": _test(id) for id in wanted}
    frozen = dict(namespace)

    def run(self: Any, request: Any) -> dict[str, Outcome]:
        cls = type(self)
        if "_outcomes" not in cls.__dict__:
            cls._outcomes = _run(make, _selected(request, cls) & set(wanted), jobs, backend)
        outcomes: dict[str, Outcome] = cls._outcomes
        return outcomes

    def whole(self: Any) -> None:
        """No case is missing, replaced or marked to be skipped."""
        weakened(type(self), frozen)
        cases()

    def refuse_weakening(cls: type[Any], /, **options: Any) -> None:
        weakened(cls, frozen)

    namespace |= {
        "_run": run,
        _WHOLE: whole,
        "__init_subclass__": classmethod(refuse_weakening),
        "__doc__": "The conformance cases.",
    }
    return type("ConformanceSuite", (), namespace)


def weakened(cls: type, frozen: dict[str, Any]) -> None:
    """Raises: AssertionError naming each case that `cls` lacks, replaces or skips."""
    changed = [name for name, test in frozen.items() if getattr(cls, name, None) is not test]
    changed += [name for name in frozen if getattr(getattr(cls, name, None), "pytestmark", None)]
    marks = [mark.name for mark in getattr(cls, "pytestmark", []) if mark.name.startswith(("skip", "xfail"))]
    names = ", ".join(name.removeprefix("test_") for name in changed)
    assert not changed, f"{cls.__name__} weakens the conformance suite: {names} removed, replaced or marked"
    assert not marks, f"{cls.__name__} weakens the conformance suite: all of it is marked {marks}"


def _test(id: str) -> Callable[[Any, Any], None]:
    case = cases()[id]

    def test(self: Any, request: Any) -> None:
        outcome = self._run(request)[id]
        if outcome.result == "failed":
            raise AssertionError(f"{id}: {case.title}\n{outcome.detail}")
        if outcome.result in ("refused", "unavailable"):
            import pytest

            pytest.skip(f"{id} {outcome.result}: {outcome.detail}")

    test.__name__ = test.__qualname__ = f"test_{id}"
    test.__doc__ = case.title
    return test


def _selected(request: Any, cls: type) -> set[str]:
    names = {item.originalname for item in request.session.items if getattr(item, "cls", None) is cls}
    return {id for id in IDS if f"test_{id}" in names}


def _run(make: Callable[[], Broker | Rig], ids: set[str], jobs: int, backend: Backend) -> dict[str, Outcome]:
    made = make()
    rig = made if isinstance(made, Rig) else rig_for(made)
    return {outcome.id: outcome for outcome in conform(rig, ids=ids, jobs=jobs, backend=backend).outcomes}
