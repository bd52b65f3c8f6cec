"""A delivery's token, and how long it is ours."""

from __future__ import annotations

import asyncio
import time

from ._wire import NANO

__all__ = ["MARGIN", "Lease", "Pulse", "Standing", "facts", "recall", "remember"]

#: A lease counts as over a little early: the server's clock began before ours.
MARGIN = 0.95


def facts(reply: str) -> tuple[int, str, float]:
    """How often a message was delivered, its position in the stream and when it was stored: the server writes that
    into the subject of the answer. $JS.ACK.<stream>.<consumer>.<delivered>.<position>.<consumer's>.<time>.<left>,
    with domain and account before the stream on newer servers (NATS's ADR-15)."""
    parts = reply.split(".")
    at = 4 if len(parts) == 9 else 6
    return int(parts[at]), parts[at + 1], int(parts[at + 3]) / NANO


class Lease:
    """A token: where to answer, and until when the delivery is ours. Works on any connection.

    `box`: which feed asked for it. `delivered`: how often the message was handed to anybody; `spared`: how many of
    those were no attempts, if that is `known`."""

    __slots__ = ("box", "delivered", "known", "position", "reply", "settled", "spared", "until")

    def __init__(self, reply: str, box: str, until: float) -> None:
        self.reply, self.box, self.until, self.settled, self.spared = reply, box, until, False, 0
        self.delivered, self.position, _ = facts(reply)
        self.known = self.delivered == 1

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return max(1, self.delivered - self.spared)


class Standing:
    """What a feed whose link broke knew, and the next one of its source goes on from: the pin it had, the leases
    that handlers still hold, and the last position that it handed over."""

    def __init__(self) -> None:
        self.pin: str | None = None
        self.held: set[Lease] = set()
        self.last = 0


_standing: dict[str, Standing] = {}


def remember(source: str, standing: Standing) -> None:
    """Keep it for the next feed of the source. A bus that ends without one leaves it here, so there is a limit."""
    while len(_standing) >= 1000:
        del _standing[next(iter(_standing))]
    _standing[source] = standing


def recall(source: str) -> Standing:
    """What was kept for the source, or a blank one."""
    return _standing.pop(source, None) or Standing()


class Pulse:
    """Tells how old something that has just arrived may be: a blocked event loop reads late what came in time."""

    def __init__(self, interval: float) -> None:
        self._interval, self._last = interval, time.monotonic()
        self._late_until = self._late_since = 0.0
        self._timer = asyncio.get_running_loop().call_later(interval, self._beat)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._last > 2 * self._interval:
            self._late_since, self._late_until = self._last, now + self._interval
        self._last = now
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)

    def since(self) -> float:
        """What arrives now was sent after this time."""
        return self._late_since if time.monotonic() < self._late_until else self._last

    def stop(self) -> None:
        """No more of it."""
        self._timer.cancel()
