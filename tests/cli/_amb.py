"""The command line as somebody at a shell meets it: a process, its streams and its exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

PATIENCE = 40.0


class Ended(msgspec.Struct, frozen=True):
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line it failed with; notes for people are left out."""
        lines = [line for line in self.err.splitlines() if not line.startswith("amb: note:")]
        assert len(lines) == 1, self.err
        return lines[0]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without AMB's variables, and with what is given. Compiling everything each time would take the most."""
    foreign = ("AMB_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | dict(more or {})


def amb(*arguments: str, stdin: str = "", env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ended:
    """Run ``amb`` to its end."""
    done = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(env),
        cwd=cwd,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def command(*arguments: str, module: str = "amb_core.cli") -> list[str]:
    """``amb``, or another program, of the interpreter that runs the tests."""
    return [sys.executable, "-m", module, *arguments]


class Running:
    """An ``amb`` that has not ended yet. What it says on stderr is in `log`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def said(self) -> str:
        """Everything on stderr so far."""
        return self._log.read_text()

    def until(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until stderr has `count` matches; returns them."""
        deadline, ended = time.monotonic() + PATIENCE, False
        while len(found := re.findall(pattern, self.said)) < count:
            assert time.monotonic() < deadline and not ended, f"no {pattern!r} in:\n{self.said}"
            ended = self.process.poll() is not None  # what it said last is still read
            time.sleep(0.02)
        return found

    def line(self) -> str:
        """The next line on stdout."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, how: signal.Signals = signal.SIGINT) -> tuple[int, float]:
        """Signal it; its exit code, and how many seconds it took to end."""
        begin = time.monotonic()
        self.process.send_signal(how)
        return self.process.wait(PATIENCE), time.monotonic() - begin


@contextmanager
def started(
    *arguments: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    module: str = "amb_core.cli",
) -> Iterator[Running]:
    """An ``amb``, or another program, in the background, killed at the end if it is still there."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command(*arguments, module=module),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment(env),
            cwd=cwd,
        )
    try:
        yield Running(process, log)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def marked(mark: str) -> list[int]:
    """The processes whose environment contains `mark`, this one aside: a program's children and grandchildren."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # it has just ended
                continue
    return found


def none_left(mark: str, within: float = 2.0) -> bool:
    """Whether all processes with `mark` end in time."""
    deadline = time.monotonic() + within
    while marked(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
