"""Programs in processes of their own, that can be ended in an orderly way, killed and frozen, for fault tests."""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from ..broker import Broker
from ._wait import eventually

__all__ = ["Child"]


class Child:
    """A process that tells what happens to it in lines of JSON with an ``"event"``, and may be told something.

    Make one with ``async with Child.running(broker, topic, options)``: a consumer that the kit brings; or with
    ``async with Child.program(command)`` for a program of your own.
    """

    def __init__(self, process: anyio.abc.Process) -> None:
        self._process = process
        #: What the child reported so far.
        self.journal: list[dict[str, Any]] = []
        self.ended = False

    @classmethod
    @asynccontextmanager
    async def program(
        cls, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> AsyncIterator[Child]:
        """A running program; killed on the way out. It finds the modules that this process finds, and the
        variables in `environment` beside this process's own. Its standard error goes where ours goes."""
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = await anyio.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None,
            env={**os.environ, **paths, **(environment or {})},
        )  # fmt: skip
        child = cls(process)
        async with process, anyio.create_task_group() as group:
            group.start_soon(child._read)
            try:
                yield child
            finally:
                with anyio.CancelScope(shield=True):
                    child.kill()
                    await process.wait()
                group.cancel_scope.cancel()

    @classmethod
    @asynccontextmanager
    async def running(cls, broker: Broker, topic: str, options: dict[str, Any]) -> AsyncIterator[Child]:
        """A ``python -m amb_core.testing.child`` that subscribes to `topic` with the `options` of
        `MessageBus.subscribe`, and says ``ready`` then; ``options["then"]`` is what its handler does."""
        async with cls.program([sys.executable, "-m", "amb_core.testing.child"]) as child:
            await child._write(base64.b64encode(pickle.dumps((broker, topic, options))))
            yield child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send(line + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        lines = BufferedByteReceiveStream(self._process.stdout)
        try:
            while True:
                self.journal.append(json.loads(await lines.receive_until(b"\n", 1 << 20)))
        except (anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self.ended = True

    async def tell(self, **command: Any) -> None:
        """Have the child do something: ``do="ack", data=…``, ``do="publish", topic=…, data=…``, ``do="stop"``."""
        await self._write(json.dumps(command).encode())

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it reported under that name."""
        return [entry for entry in self.journal if entry["event"] == name]

    @property
    def data(self) -> list[Any]:
        """The data of every message its handler was called with."""
        return [entry["data"] for entry in self.events("got")]

    async def event(self, name: str, count: int = 1, within: float = 15.0) -> list[dict[str, Any]]:
        """Wait until it reported `name` that often."""
        await eventually(
            lambda: len(self.events(name)) >= count or self.ended,
            lambda: f"the consumer process said {name!r} {len(self.events(name))} of {count} times",
            within,
        )
        assert len(self.events(name)) >= count, f"the consumer process ended after {self.journal!r}"
        return self.events(name)

    def terminate(self) -> None:
        """SIGTERM: what a deployment sends first."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: no chance to do anything."""
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: a process that lives and does nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                self._process.send_signal(number)

    async def ends(self, within: float = 15.0) -> int:
        """Its exit code (minus the signal that killed it), when it has ended. Raises: TimeoutError."""
        with anyio.fail_after(within):
            return await self._process.wait()

    async def stop(self, within: float = 15.0) -> None:
        """Have it disconnect, and wait until it has ended."""
        await self.tell(do="stop")
        await self.event("stopped", within=within)
        await self.ends(within)
