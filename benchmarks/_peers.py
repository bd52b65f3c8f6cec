"""The contestants: each a child process, the others' in an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Timer

import msgspec

ROOT = Path(__file__).resolve().parents[1]
#: Seconds that a measurement may take.
_PATIENCE = 120.0
_ENVIRONMENTS = ROOT / "build" / "peers"


class Unavailable(RuntimeError):
    """A contestant cannot take part; the text says why."""


class Contestant(msgspec.Struct, frozen=True):
    """Who takes part, and how it is started."""

    name: str
    #: The module under ``benchmarks._drivers``.
    driver: str
    #: What its environment holds; nothing: it runs in this one.
    installs: tuple[str, ...] = ()
    #: Takes part with so many times fewer messages, because it is that slow.
    fewer: int = 1
    #: Given to its driver.
    arguments: tuple[str, ...] = ()


class Child:
    """A running contestant."""

    def __init__(self, contestant: Contestant, arguments: Sequence[str]) -> None:
        self.name = contestant.name
        self._fewer = contestant.fewer
        command = [
            _python(contestant),
            "-m",
            f"benchmarks._drivers.{contestant.driver}",
            *contestant.arguments,
            *arguments,
        ]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        try:
            self.cases = msgspec.convert(self._read(), list[str])
        except BaseException:
            self.close()
            raise

    def measure(self, case: str, count: int, times: int = 1) -> Mapping[str, float]:
        """The figures of a case, seconds: the lowest of so many runs. Raises: Unavailable when it died of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"case": case, "count": count // self._fewer or 1, "times": times}) + "\n")
        self._process.stdin.flush()
        return msgspec.convert(self._read(), dict[str, float])

    def _read(self) -> object:
        assert self._process.stdout is not None
        too_late = Timer(_PATIENCE, self._process.kill)
        too_late.start()
        line = self._process.stdout.readline()
        too_late.cancel()
        if not line:
            raise Unavailable(
                f"{self.name} ended with exit code {self._process.wait()}: its message is above, "
                f"or it had not come to an end after {_PATIENCE:g} s and was killed (-9)"
            )
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def children(contestants: Sequence[Contestant], *arguments: str) -> Iterator[list[Child]]:
    """All who can take part, running, with the arguments. Who cannot is named on stderr; ours must be able to."""
    with ExitStack() as stack:
        found = list[Child]()
        for contestant in contestants:
            try:
                child = Child(contestant, arguments)
            except Unavailable as reason:
                if not contestant.installs:
                    raise
                print(f"without {contestant.name}: {reason}", file=sys.stderr)
                continue
            stack.callback(child.close)
            found.append(child)
        yield found


def _python(contestant: Contestant) -> str:
    """The interpreter that has what the contestant needs; installs it the first time."""
    if not contestant.installs:
        return sys.executable
    folder = _ENVIRONMENTS / "-".join(contestant.installs).replace("[", "_").replace("]", "")
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return str(python)
    uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".tools" / "bin"))
    if uv is None:
        raise Unavailable("its environment is made with uv, which is not on the PATH")
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(python), *contestant.installs],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        if done.returncode:
            raise Unavailable(f"it cannot be installed: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    complete.touch()
    return str(python)


def _environment() -> dict[str, str]:
    """Ours, without what would lead a child to other packages or options."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AMB_", "PYTHON")) and name != "VIRTUAL_ENV"
    }
