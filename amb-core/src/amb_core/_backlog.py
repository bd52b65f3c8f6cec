"""What waits in the broker, asked now and then, and only while somebody wants to know."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from ._leaving import answered
from .broker import Backlog, TellsBacklog, is_inbox
from .errors import AmbError

if TYPE_CHECKING:
    from ._consumer import Consumer
    from ._lifecycle import Supervised

log = logging.getLogger("amb")
#: Seconds after which an answer is not waited for.
_PATIENCE = 10.0
_interval: float | None = None


def ask_every(seconds: float | None) -> None:
    """How often brokers are asked about subscriptions that begin from now on; None: never."""
    global _interval
    _interval = seconds


def interval(consumer: Consumer) -> float | None:
    """Seconds between two questions about this one; None: nobody asks."""
    asked = isinstance(consumer.feed, TellsBacklog) and not is_inbox(consumer.source.pattern)
    return _interval if asked else None


async def watch(supervised: Supervised, seconds: float) -> None:
    """Ask anew so many seconds after each answer, until the subscription ends."""
    consumer = supervised.consumer
    while not supervised.gone.is_set():
        consumer.backlog = None if consumer.feed is None else await _answer(consumer)
        with anyio.move_on_after(seconds):
            await supervised.gone.wait()


async def _answer(consumer: Consumer) -> Backlog | None:
    feed = consumer.feed
    assert isinstance(feed, TellsBacklog)
    with anyio.move_on_after(_PATIENCE):
        try:
            return await answered(feed.backlog())
        except AmbError as error:
            log.debug("what waits for %r is not known: %s", consumer.source.pattern, error)
        except Exception:
            log.exception("the backend raised what its contract does not allow")
    return None
