"""Elections: a key with an expiry holds a name, and a counter beside it gives the fencing tokens."""

from __future__ import annotations

from math import ceil

from amb_core.errors import Unavailable

from ._links import Command, checked
from ._scripts import Script
from ._servers import Servers
from ._wire import Names

__all__ = ["Elections"]


# Both keys are declared, ``f`` the last token and ``l`` the leader's: while a slot of a Cluster moves, a node that has
# only one of them asks to try again.

# KEYS: the last token, the leader's. ARGV: for how long (ms). Returns the token, or nothing if there is a leader. A
# token is also the time (microseconds), so that one from before the counter was lost is lower.
ELECT = Script("""
if redis.call('EXISTS', KEYS[2]) == 1 then return false end
local t = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local token = string.format('%.0f', math.max(last + 1, t[1] * 1000000 + t[2]))
redis.call('SET', KEYS[1], token)
redis.call('SET', KEYS[2], token, 'PX', ARGV[1])
return token
""")

# KEYS: the last token, the leader's. ARGV: the token, for how long (ms). Returns whether it still leads.
REMAIN = Script("""
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[2], ARGV[2])
""")

# KEYS: the last token, the leader's. ARGV: the token.
RESIGN = Script("""
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[2])
""")


class Elections:
    """What `amb_core.broker.Elects` says, on Redis."""

    def __init__(self, found: Servers, names: Names, replicas: int, patience: float) -> None:
        self._servers, self._names = found, names
        self._replicas, self._patience = replicas, int(patience * 1000)

    async def acquire(self, name: str, seconds: float) -> int | None:
        """The token, if nobody holds `name`."""
        token = await self._run(ELECT, name, f"elect a leader of {name!r}", ceil(seconds * 1000))
        return None if token is None else int(token)

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """Whether `token` held it until now, and does from now on."""
        doing = f"stay the leader of {name!r}"
        return bool(await self._run(REMAIN, name, doing, token, ceil(seconds * 1000)))

    async def release(self, name: str, token: int) -> None:
        """Nobody holds it, if `token` did."""
        await self._run(RESIGN, name, f"resign from {name!r}", token)

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
