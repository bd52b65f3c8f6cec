"""The parent of worker processes: starts them again when they die, passes SIGTERM on, waits, kills at last."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence

import anyio
import anyio.abc
import click

from ._exit import ExitCode
from ._reload import RELOAD

#: Seconds before a dead worker is started again: doubles from the first to the last while it dies young.
FIRST_PAUSE, LAST_PAUSE, YOUNG = 0.2, 10.0, 10.0
#: A worker that ends like this would do so again.
HOPELESS = (ExitCode.USAGE, ExitCode.NOT_FOUND)


class Crew:
    """Runs `command` in several processes, each in a session of its own so that Ctrl-C reaches only this one."""

    def __init__(self, command: Sequence[str], workers: int, grace: float) -> None:
        self._command, self._workers, self._grace = command, workers, grace
        self._processes: dict[int, anyio.abc.Process] = {}
        self._code = int(ExitCode.OK)
        self._stop = anyio.Event()

    async def run(self) -> int:
        """Returns the exit code: 0 after SIGINT, SIGTERM, or when every worker has ended by itself."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen)
            async with anyio.create_task_group() as workers:
                for number in range(self._workers):
                    workers.start_soon(self._keep, number)
            group.cancel_scope.cancel()
        return self._code

    async def _listen(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                if self._stop.is_set():
                    self._signal(signal.SIGKILL)  # asked twice
                self._stop.set()

    async def _keep(self, number: int) -> None:
        """Keep worker `number` alive until everything stops, or it ends on purpose."""
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            begin = anyio.current_time()
            code = await self._live(number)
            if self._stop.is_set() or code == ExitCode.OK:
                return
            if code in HOPELESS:
                self._code = self._code or code
                self._stop.set()
                return
            if code == RELOAD:
                click.echo(f"amb run: a source file changed: starting worker {number} again", err=True)
                continue
            pause = FIRST_PAUSE if anyio.current_time() - begin > YOUNG else min(pause * 2, LAST_PAUSE)
            click.echo(
                f"amb run: worker {number} ended with {_named(code)}; starting it again in {pause:g} s", err=True
            )
            with anyio.move_on_after(pause):
                await self._stop.wait()

    async def _live(self, number: int) -> int:
        """One life of a worker; its exit code."""
        command = [*self._command, "--child", str(number)]
        process = await anyio.open_process(
            command, stdin=subprocess.DEVNULL, stdout=None, stderr=None, start_new_session=True
        )
        self._processes[number] = process
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._end, process)
                await process.wait()
                group.cancel_scope.cancel()
        finally:
            del self._processes[number]
        assert process.returncode is not None
        return process.returncode

    async def _end(self, process: anyio.abc.Process) -> None:
        """When everything stops: ask, wait for the grace time, kill."""
        await self._stop.wait()
        process.terminate()
        await anyio.sleep(self._grace)
        click.echo(f"amb run: process {process.pid} did not end within {self._grace:g} s: killing it", err=True)
        process.kill()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            process.send_signal(number)


def _named(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"
