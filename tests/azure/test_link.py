"""What AMB puts around the client's own link, without a service."""

from __future__ import annotations

import anyio
import pytest
from amb_azure._link import share

pytestmark = pytest.mark.anyio


class Connection:
    """Like the client's: who listens reads one frame, and those that come meanwhile stand in line."""

    def __init__(self) -> None:
        self.turn, self.frames, self.read = anyio.Lock(), anyio.Semaphore(0), 0

    async def listen(self, wait: float = 0.0) -> None:
        async with self.turn:
            await self.frames.acquire()
            self.read += 1


async def test_all_who_listen_go_on_with_the_first_frame() -> None:
    connection = Connection()
    share(connection)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(connection.listen, 0.2)
            await anyio.wait_all_tasks_blocked()
            connection.frames.release()
    assert connection.read == 1


async def test_another_reads_when_the_reader_is_cancelled() -> None:
    connection = Connection()
    share(connection)
    share(connection)  # of a link that is asked for twice
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(_after_cancelling, connection, scope)
                await connection.listen()
        assert scope.cancelled_caught
    assert connection.read == 1


async def _after_cancelling(connection: Connection, scope: anyio.CancelScope) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(connection.listen)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        group.start_soon(connection.listen)
        await anyio.wait_all_tasks_blocked()
        connection.frames.release()
