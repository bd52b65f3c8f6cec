"""A server as a child process: started when it answers, stopped by its process id."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_WITHIN = 60.0
STOP_WITHIN = 10.0


class MissingServer(RuntimeError):
    """A program that a server needs is not installed; the text says how to get it."""


def program(name: str, package: str) -> str:
    """The path of an installed program. Raises: MissingServer."""
    found = shutil.which(name)
    if found is None:
        raise MissingServer(f"{name} is not installed: apt-get install {package}")
    return found


def free_ports(count: int) -> list[int]:
    """That many loopback ports that nobody uses, and whose cluster bus port (port + 10000) nobody uses either.

    All are below those that the system gives to outgoing connections: a server that restarts finds its port free."""
    ports: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(ports) < count:
            port = random.randrange(10_000, 22_768)
            try:
                for taken in (port, port + 10_000):
                    held.append(socket.socket())
                    held[-1].bind(("127.0.0.1", taken))
            except OSError:
                continue
            ports.append(port)
    finally:
        for sock in held:
            sock.close()
    return ports


class Server:
    """A running server process."""

    def __init__(self, command: Sequence[str], folder: Path, answers: Callable[[], bool]) -> None:
        self._command, self._folder, self._answers = list(command), folder, answers
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers. Raises: RuntimeError, with the end of its log."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = (self._folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._command[0]} does not answer:\n{tail}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end, and wait for that; kill it if it does not."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Suspend it: its connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # Its threads stop one after the other: until the last has, one of them may still answer.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop it and start it again, with the data it had."""
        self.stop()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Starts the servers, and stops them at the end."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.stop()


def answers_on(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def in_ci() -> bool:
    """Whether a missing server is a failure rather than a line of advice."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")
