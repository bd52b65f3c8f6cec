"""What a JetStream consumer is told of its deliveries: a word on the reply subject of each (NATS's ADR-15)."""

from __future__ import annotations

from collections.abc import Sequence

from amb_core.broker import Settlement
from amb_core.errors import NoResponders, Unavailable

from ._lease import Lease
from ._link import Link
from ._wire import NANO

__all__ = ["STILL_AT_IT", "nak", "tell", "verdict"]

STILL_AT_IT = b"+WPI"


def verdict(outcome: Settlement) -> bytes:
    """The word for an outcome."""
    if outcome.verdict == "ack":
        return b"+ACK"
    if outcome.verdict == "discard":
        return b"+TERM"
    return nak(outcome.delay)


def nak(delay: float) -> bytes:
    """Again, after so many seconds."""
    return b'-NAK {"delay": %d}' % int(delay * NANO) if delay > 0 else b"-NAK"


async def tell(link: Link, box: str, answers: Sequence[tuple[Lease, bytes]], doing: str) -> None:
    """Answer deliveries of the feed with this `box`, and of those before it. Returns when the server has acted on all:
    it does so one after the other, and says so for the last. Raises: AmbError."""
    ours = [each for each in answers if each[0].box == box]
    # A server that was restarted may know nothing of those from before, and then says nothing.
    for lease, answer in [each for each in answers if each[0].box != box] + ours[:-1]:
        await link.call(doing, link.client.post(lease.reply, answer, more=True))
    if not ours and answers:
        await link.flush(doing)
    for lease, answer in ours[-1:]:
        try:
            await link.exchange(lease.reply, answer, doing)
        except NoResponders:
            raise Unavailable(f"{doing}: the consumer is gone, or has no leader") from None
