"""Refuses what a broker does not declare, before any I/O, and says who can."""

from __future__ import annotations

from collections.abc import Callable

from .broker import Broker, Capabilities
from .errors import AmbError, UnsupportedError


def require(broker: Broker, what: str, declared: Callable[[Capabilities], bool]) -> None:
    """Return if `broker` declares it. Raises: UnsupportedError, naming the installed brokers that do."""
    if declared(broker.capabilities):
        return
    able = sorted(name for name, other in _installed() if declared(other))
    hint = f"{', '.join(able)} can" if able else "no installed broker can"
    raise UnsupportedError(f"{type(broker).__name__} does not support {what} with these options ({hint})")


def _installed() -> list[tuple[str, Capabilities]]:
    from ._plugins import installed_brokers

    found = []
    for name, make in installed_brokers():
        try:
            found.append((name, make().capabilities))
        except (AmbError, TypeError, ValueError):
            continue  # needs options to be built, or is broken: no advice about it
    return found
