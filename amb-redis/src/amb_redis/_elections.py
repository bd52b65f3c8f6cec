"""Elections: a key with an expiry holds a name, and a counter beside it gives the fencing tokens."""

from __future__ import annotations

from math import ceil

from amb_core.errors import Unavailable

from . import _scripts
from ._links import Command, checked
from ._scripts import Script
from ._servers import Servers
from ._wire import Names

__all__ = ["Elections"]


class Elections:
    """What `amb_core.broker.Elects` says, on Redis."""

    def __init__(self, found: Servers, names: Names, replicas: int, patience: float) -> None:
        self._servers, self._names = found, names
        self._replicas, self._patience = replicas, int(patience * 1000)

    async def acquire(self, name: str, seconds: float) -> int | None:
        """The token, if nobody holds `name`."""
        token = await self._run(_scripts.ELECT, name, f"elect a leader of {name!r}", ceil(seconds * 1000))
        return None if token is None else int(token)

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """Whether `token` held it until now, and does from now on."""
        doing = f"stay the leader of {name!r}"
        return bool(await self._run(_scripts.REMAIN, name, doing, token, ceil(seconds * 1000)))

    async def release(self, name: str, token: int) -> None:
        """Nobody holds it, if `token` did."""
        await self._run(_scripts.RESIGN, name, f"resign from {name!r}", token)

    async def _run(self, script: Script, name: str, doing: str, *arguments: object) -> bytes | None:
        base = self._names.base(name)
        # Not by digest: a server that has to be taught it first would run it after the WAIT.
        commands: list[tuple[bytes, Command]] = [
            (base, ("EVAL", script.source, 2, base + b"f", base + b"l", *arguments))
        ]
        if self._replicas:
            commands.append((base, ("WAIT", self._replicas, self._patience)))
        replies = [checked(reply, doing) for reply in await self._servers.call(commands, doing)]
        if self._replicas and replies[0] and replies[1] < self._replicas:
            raise Unavailable(
                f"{doing}: only {replies[1]} of {self._replicas} replicas know; a failover now would elect another"
            )
        return replies[0]  # type: ignore[no-any-return]
