"""Ending a client within seconds, whatever its server does.

aiokafka's own `stop` waits for a rebalance to end, and for records to be accepted: while others of a group make room,
or while a server is away, that has no end. Cut off, it leaves its tasks and sockets behind. So what it would have done
is then done here, piece by piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from aiokafka import errors as native
from aiokafka.protocol.group import LeaveGroupRequest

from ._errors import NATIVE

__all__ = ["stop"]

#: A client may end in its own way for so long, and each piece of one that does not for so long, seconds.
_POLITE, _PIECE = 0.7, 1.0
#: Records that were accepted by `send` may take so long to reach the server.
_FLUSH = 3.0


async def stop(client: Any) -> None:
    """End a consumer, producer or admin client. Raises nothing: it is gone either way, and what had to be said was said
    by whoever used it."""
    producing = hasattr(client, "_message_accumulator")
    if await _within(_FLUSH if producing else _POLITE, getattr(client, "stop", None) or client.close):
        return
    for piece in _of_producer(client) if producing else _of_consumer(client):
        await _within(_PIECE, piece)


def _of_producer(client: Any) -> list[Callable[[], Awaitable[Any]]]:
    client._message_accumulator.fail_all(native.KafkaConnectionError("the producer was closed"))
    return [client._sender.close, client.client.close]


def _of_consumer(client: Any) -> list[Callable[[], Awaitable[Any]]]:
    pieces: list[Callable[[], Awaitable[Any]]] = []
    coordinator: Any = getattr(client, "_coordinator", None)
    fetcher = getattr(client, "_fetcher", None)
    if hasattr(coordinator, "member_id"):
        pieces += [
            coordinator._stop_heartbeat_task, coordinator._stop_commit_offsets_refresh_task,
            lambda: _say_goodbye(client, coordinator),
        ]  # fmt: skip
    if fetcher is not None:
        pieces.append(fetcher.close)
    return [*pieces, client._client.close]


async def _say_goodbye(client: Any, coordinator: Any) -> None:
    """Leave the group over a link of its own: the group's may be waiting for an answer that others delay."""
    if coordinator.member_id and coordinator.coordinator_id is not None and coordinator._group_instance_id is None:
        request = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
        await client._client.send(coordinator.coordinator_id, request)


async def _within(seconds: float, end: Callable[[], Awaitable[Any]]) -> bool:
    with anyio.move_on_after(seconds, shield=True) as scope:
        try:
            await end()
        except NATIVE:
            return False
        except asyncio.CancelledError:
            # Of one of its tasks, unless it is ours.
            if scope.cancel_called:
                raise
            return False
    return not scope.cancelled_caught
