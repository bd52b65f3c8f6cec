"""Checks of what a program passes in. Each error names the argument and says what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any

_KINDS = {str: "text", int: "a whole number", bool: "True or False", Mapping: "a dict"}


def kind(name: str, value: object, *kinds: type) -> None:
    """Return if `value` is None or of one of the `kinds`. Raises: TypeError."""
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if value is not None and (wrong_bool or not isinstance(value, kinds)):
        wanted = " or ".join(_KINDS.get(each, f"a {each.__name__}") for each in kinds)
        raise TypeError(f"{name} must be {wanted}, not {_shown(value)}")


def count(name: str, value: object, least: int) -> None:
    """Return if `value` is a whole number of at least `least`. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def seconds(name: str, value: Any, *, zero: bool = True) -> float:
    """`value`, if it is a number of seconds. Raises: TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {_shown(value)}")
    if isnan(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} is a number of seconds and cannot be {value!r}")
    return value


def _shown(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {value!r:.40}"
