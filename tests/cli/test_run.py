"""``amb run``: workers that are kept alive, reloading, and ends that leave nothing behind."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

from amb_core.cli._exit import ExitCode

from ._amb import amb, marked, none_left, started

PROGRAM = """
import sys

from amb_core import Message, MessageBus

bus = MessageBus()


@bus.responder("who", group="who")
async def who(request: Message) -> str:
    return "first"


print("loaded", file=sys.stderr)
"""


def test_a_program_in_memory_ends_on_sigterm_and_on_ctrl_c_with_0(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PROGRAM + "\n\ndef make() -> MessageBus:\n    return bus\n")
    for target, how in (("app:bus", signal.SIGTERM), ("app:make", signal.SIGINT)):
        with started("run", target, log=tmp_path / "log", cwd=tmp_path) as running:
            running.until("is live on InMemoryBroker")
            code, seconds = running.end(how)
        assert (code, seconds < 8) == (0, True)
        assert "lives inside one process" in running.said


def test_a_worker_that_is_killed_is_started_again_and_sigterm_leaves_no_process(
    redis: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    mark = f"AMB_TEST_MARK={secrets.token_hex(8)}"
    env = redis | dict([mark.split("=")])
    with started("run", "app:bus", "--workers", "2", log=tmp_path / "log", cwd=tmp_path, env=env) as running:
        first = running.until(r"live on RedisBroker .*process (\d+)", 2)
        assert len(set(first)) == 2 and set(map(int, first)) < set(marked(mark))
        os.kill(int(first[0]), signal.SIGKILL)
        running.until("worker . ended with SIGKILL; starting it again")
        third = running.until(r"live on RedisBroker .*process (\d+)", 3)
        assert len(set(third)) == 3
        assert amb("request", "who", "1", env=redis).out == "first\n"
        code, seconds = running.end(signal.SIGTERM)
        assert (code, seconds < 10) == (0, True)
        assert none_left(mark)


def test_workers_end_when_their_parent_is_killed(redis: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    mark = f"AMB_TEST_MARK={secrets.token_hex(8)}"
    env = redis | dict([mark.split("=")])
    with started("run", "app:bus", "--workers", "2", log=tmp_path / "log", cwd=tmp_path, env=env) as running:
        running.until("is live on RedisBroker", 2)
        running.end(signal.SIGKILL)
        assert none_left(mark, within=10)


def test_workers_of_a_program_that_cannot_work_end_at_once_with_its_code(tmp_path: Path) -> None:
    done = amb("run", "nosuch:bus", "--workers", "2", cwd=tmp_path)
    assert done.code == ExitCode.NOT_FOUND
    assert set(done.err.splitlines()) == {f"amb: no module 'nosuch' in {tmp_path} or on the Python path"}


def test_a_changed_file_is_loaded_again_also_after_a_mistake_in_it(redis: dict[str, str], tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(PROGRAM)
    with started("run", "app:bus", "--reload", log=tmp_path / "log", cwd=tmp_path, env=redis) as running:
        running.until("is live on RedisBroker")
        app.write_text(PROGRAM.replace("async def", "async dfe"))
        running.until("app.py:10: SyntaxError")
        running.until("waiting for a source file to change")
        app.write_text(PROGRAM.replace('"first"', '"second"'))
        running.until("is live on RedisBroker", 2)
        assert amb("request", "who", "1", env=redis).out == "second\n"
        assert running.end()[0] == 0


def test_an_unreachable_broker_is_one_line_and_a_code(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from amb_core import MessageBus\n\nbus = MessageBus(connect_timeout=0.2)\n")
    done = amb("run", "app:bus", "--url", "redis://127.0.0.1:1", cwd=tmp_path)
    assert done.code == ExitCode.UNREACHABLE
    assert "127.0.0.1:1" in done.err.splitlines()[-1]
