"""Reading what a stream has kept, through a consumer that disturbs nobody."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import anyio
import msgspec
from amb_core.broker import Incoming
from amb_core.concurrency import Wakeup, bounded
from amb_core.errors import ConfigurationError, Unavailable
from amb_core.topics import compile_pattern
from nats.aio.msg import Msg

from ._feed import subscribe
from ._lease import facts
from ._link import Link
from ._stream import Stream
from ._wire import NANO, NOT_BEFORE, Names, from_headers

__all__ = ["replay"]

_BATCH = 200
#: Seconds after which the server forgets the consumer if we do not come back.
_FORGOTTEN = 60


async def replay(
    link: Link, stream: Stream, names: Names, pattern: str, since: float | str | None, until: float | None
) -> AsyncIterator[Incoming]:
    """See `amb_core.broker.Replays.replay`."""
    doing = f"replay {pattern!r}"
    wanted, matches = names.filters(pattern), compile_pattern(pattern)
    stream.keeps(wanted, doing)
    box, name, got, news = link.client.new_inbox(), f"replay-{secrets.token_hex(8)}", list[Msg](), Wakeup()

    async def arrived(message: Msg) -> None:
        got.append(message)
        news.set()

    (subscription,) = await subscribe(link, [box], "", arrived, doing)
    try:
        made = await stream.make_consumer(name, _config(wanted, since), doing)
        left = made.get("num_pending", 0)
        while left > 0:
            await _ask(link, stream, name, box, min(left, _BATCH), doing)
            for message in await _answers(link, got, news, min(left, _BATCH), doing):
                left -= 1
                incoming, time = _incoming(message, names)
                if until is not None and time > until:
                    return
                if matches(incoming.topic):
                    yield incoming
    finally:
        with anyio.move_on_after(2, shield=True):
            if link.lost is None:
                await link.call(doing, subscription.unsubscribe())
                await stream.drop_consumer(name)


async def _ask(link: Link, stream: Stream, name: str, box: str, count: int, doing: str) -> None:
    request = msgspec.json.encode({"batch": count, "expires": 4 * NANO})
    await link.call(doing, link.client.post(f"{stream.api}.CONSUMER.MSG.NEXT.{stream.name}.{name}", request, box))


async def _answers(link: Link, got: list[Msg], news: Wakeup, count: int, doing: str) -> list[Msg]:
    """`count` messages, or fewer where some have been removed meanwhile. Raises: Unavailable, ConnectionLost."""
    while len(got) < count and (not got or got[-1].reply):
        link.check()
        try:
            await bounded(news.wait(), 4 + link.patience)
        except TimeoutError:
            raise Unavailable(f"{doing}: JetStream has stopped answering") from None
    found = [message for message in got if message.reply]
    if not found:
        raise Unavailable(f"{doing}: JetStream has nothing more, though it said so")
    got.clear()
    return found


def _config(wanted: list[str], since: float | str | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "ack_policy": "none",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": _FORGOTTEN * NANO,
    }
    if wanted != [">"]:
        config["filter_subjects"] = wanted
    if isinstance(since, str):
        if not since.isdecimal():
            raise ConfigurationError(f"{since!r} is no position in a JetStream stream: those are sequence numbers")
        return config | {"deliver_policy": "by_start_sequence", "opt_start_seq": int(since) + 1}
    if since is not None:
        moment = datetime.fromtimestamp(since, UTC).isoformat()
        return config | {"deliver_policy": "by_start_time", "opt_start_time": moment}
    return config


def _incoming(message: Msg, names: Names) -> tuple[Incoming, float]:
    _, position, stored = facts(message.reply)
    headers, key = from_headers(message.headers)
    headers.pop(NOT_BEFORE, None)
    topic = names.topic(message.subject) or message.subject
    return Incoming(topic, message.data, headers, None, key, position=position, native=message), stored
