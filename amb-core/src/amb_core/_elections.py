"""A connection's elections, for those who have the bus."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from ._leaving import answered
from ._lifecycle import Host
from .broker import Connection, Elects
from .errors import AmbError

__all__ = ["Elections"]

T = TypeVar("T")


class Elections:
    """`amb_core.broker.Elects` on a connection; one that turns out to be lost is made anew for the next use."""

    def __init__(self, host: Host, connection: Connection) -> None:
        assert isinstance(connection, Elects), "declares elections, has no Elects"
        self._host, self._connection, self._elects = host, connection, connection

    async def acquire(self, name: str, seconds: float) -> int | None:
        """See `amb_core.broker.Elects.acquire`."""
        return await self._told(self._elects.acquire(name, seconds))

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """See `amb_core.broker.Elects.renew`."""
        return await self._told(self._elects.renew(name, token, seconds))

    async def release(self, name: str, token: int) -> None:
        """See `amb_core.broker.Elects.release`."""
        await self._told(self._elects.release(name, token))

    async def _told(self, call: Awaitable[T]) -> T:
        try:
            return await answered(call)
        except AmbError as error:
            # Else a bus that does nothing but elect would never hear of it.
            self._host.suspect(error, self._connection)
            raise
