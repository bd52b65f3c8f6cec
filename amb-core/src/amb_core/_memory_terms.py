"""Who holds which name for how long: elections within a process."""

from __future__ import annotations

from time import monotonic

import msgspec

__all__ = ["Terms"]


class _Term(msgspec.Struct, frozen=True):
    token: int
    until: float


class Terms:
    """What `amb_core.broker.Elects` says, without waiting."""

    def __init__(self) -> None:
        self._terms: dict[str, _Term] = {}
        self._last = 0

    def acquire(self, name: str, seconds: float) -> int | None:
        """The token, if nobody holds `name`."""
        held = self._terms.get(name)
        if held is not None and monotonic() < held.until:
            return None
        self._last += 1
        self._terms[name] = _Term(self._last, monotonic() + seconds)
        return self._last

    def renew(self, name: str, token: int, seconds: float) -> bool:
        """Whether `token` held it until now, and does from now on."""
        holds = self._holds(name, token)
        if holds:
            self._terms[name] = _Term(token, monotonic() + seconds)
        return holds

    def release(self, name: str, token: int) -> None:
        """Nobody holds it, if `token` did."""
        if self._holds(name, token):
            del self._terms[name]

    def _holds(self, name: str, token: int) -> bool:
        held = self._terms.get(name)
        return held is not None and held.token == token and monotonic() < held.until
