"""What becomes of a delivery, as AMQP says it."""

from __future__ import annotations

from typing import cast

from .codec import Described, Symbol, Ulong
from .entry import Refusal

_ACCEPTED, _REJECTED, _RELEASED, _MODIFIED, _ERROR = 0x24, 0x25, 0x26, 0x27, 0x1D
ACCEPTED = Described(Ulong(_ACCEPTED), [])
RELEASED = Described(Ulong(_RELEASED), [])


def error(refusal: Refusal) -> Described:
    """Why, as a value of AMQP."""
    return Described(Ulong(_ERROR), [Symbol(refusal.condition), refusal.description, None])


def rejected(refusal: Refusal | None = None) -> Described:
    """It was refused; without a reason it is the echo of a client's own rejection."""
    return Described(Ulong(_REJECTED), [error(refusal)] if refusal else [])


def modified(*, undeliverable_here: bool) -> Described:
    """The echo of an abandoned or deferred delivery."""
    return Described(Ulong(_MODIFIED), [True, undeliverable_here])


def fields(state: object) -> tuple[int, list[object]]:
    """The code and the fields of a state. Settling without one releases, as nothing else was said."""
    if not isinstance(state, Described):
        return _RELEASED, []
    return cast(int, state.descriptor), cast("list[object]", state.value)


def is_accepted(code: int) -> bool:
    """Whether it was handled."""
    return code == _ACCEPTED


def is_rejected(code: int) -> bool:
    """Whether it is to be a dead letter."""
    return code == _REJECTED


def is_modified(code: int) -> bool:
    """Whether it is to be abandoned or deferred."""
    return code == _MODIFIED


def reason_of(state: list[object]) -> tuple[str, str]:
    """The reason and the description in a client's rejection."""
    given = state[0].value if state and isinstance(state[0], Described) else []
    condition, description, info = (*cast("list[object]", given), None, None, None)[:3]
    told = {str(name): value for name, value in info.items()} if isinstance(info, dict) else {}
    reason = told.get("DeadLetterReason") or ("" if info is not None else condition)
    return str(reason or ""), str(told.get("DeadLetterErrorDescription") or description or "")
