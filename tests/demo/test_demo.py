"""The demo: the same agents in one process and in six, with books that balance, or an exit code that says no."""

from __future__ import annotations

import gc
import json
import os
import re
import secrets
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from amb_core.cli._exit import ExitCode
from amb_core.demo.analyst import look_at_file
from amb_core.demo.messages import File
from redis import Redis

from tests.cli._amb import PATIENCE, Running, amb, marked, none_left, started
from tests.servers.redis import RedisServer

from .conftest import COMMITS, DEAD, FILES, git

SAID = {
    "agents.work.file": FILES,
    "agents.work.commit": COMMITS,
    "agents.finding": FILES + COMMITS - len(DEAD),
    "agents.reader.done": 1,
    "agents.governor.done": 1,
}


def many(folder: Path) -> None:
    """3000 small files: work for some seconds."""
    for number in range(3000):
        (folder / f"m{number}.txt").write_text("word\n")


def begun(running: Running, env: dict[str, str]) -> None:
    """Wait until work is announced, which is when everybody has answered the roll call. The stream itself is asked:
    between two lines that the demo says, a quick machine may do all the work there is."""
    stream = f"{env.get('AMB_REDIS_PREFIX', 'amb')}:{{agents.work.file}}:s"
    deadline = time.monotonic() + PATIENCE
    with Redis.from_url(env["AMB_REDIS_URL"]) as client:
        while not client.exists(stream):
            assert time.monotonic() < deadline and running.process.poll() is None, running.said
            time.sleep(0.01)


def check(summary: dict[str, Any]) -> None:
    """What must hold wherever the agents run."""
    # First, since it names what went wrong.
    assert {re.sub("commit .{9} ", "commit ", dead["name"]) for dead in summary["dead"]} == DEAD, summary["dead"]
    assert {topic: summary["topics"][topic]["count"] for topic in SAID} == SAID
    assert (summary["announced"], summary["handled"]) == (FILES + COMMITS, FILES + COMMITS - len(DEAD))
    assert summary["topics"]["(dead letters)"]["count"] == len(DEAD)
    # The long file and the merge succeed when looked at again; the first commit never does.
    assert (summary["retries"]["succeeded"], summary["retries"]["failed"]) == (2, 2)
    assert summary["topics"]["agents.review.panel"]["count"] >= 1
    assert summary["topics"]["agents.review.one"]["count"] >= 1
    assert summary["reviews"] == 3 == summary["latencies"]["review: asked → answered"]["count"]
    assert summary["orders"] == (FILES + COMMITS) // 20 + 1 == summary["topics"]["agents.report"]["count"]
    assert summary["latencies"]["work: announced → begun"]["count"] > 0
    assert summary["latencies"]["order: given → begun"]["p95_ms"] > 0
    assert (summary["ok"], summary["lost"], summary["unheard"], summary["orders_lost"]) == (True, [], [], 0)


def test_in_memory_everything_is_accounted_for(repository: Path) -> None:
    done = amb("demo", "--input", str(repository), "--json")
    summary = json.loads(done.out)
    check(summary)
    assert done.code == 0
    assert "together in one process, on InMemoryBroker" in done.err
    assert max(order["overtook"] for order in summary["overtaking"]) > 10, "orders overtake the backlog"


def test_on_every_broker_the_same_agents_work_in_processes_of_their_own(
    repository: Path, elsewhere: dict[str, str]
) -> None:
    mark = f"AMB_TEST_MARK={secrets.token_hex(8)}"
    done = amb("demo", "--input", str(repository), "--json", env=elsewhere | dict([mark.split("=")]))
    assert done.code == 0, done.err
    check(json.loads(done.out))
    assert re.search(r"in 6 processes, on \w+Broker\b", done.err)
    assert "WARNING" not in done.err
    assert none_left(mark)


def test_the_summary_for_people_shows_counts_retries_dead_letters_and_latencies(repository: Path) -> None:
    shown = amb("demo", "--input", str(repository)).out
    assert re.search(rf"agents\.work\.file +{FILES} +[\d.]+ ms +[\d.]+ ms", shown)
    assert "Retries: 4 (2 led to success, 2 to a dead letter)" in shown
    assert re.search(r"Dead letters: 3\n(  .*\n)*  file broken\.py: SyntaxError: .* \(1 attempt\)\n", shown)
    assert re.search(r"orders on the CRITICAL lane overtook \d+ waiting pieces of work", shown)
    assert shown.splitlines()[-1].startswith("Account: 68 announced = 65 handled + 3 dead letters + 0 lost")


def test_a_folder_without_history_gives_its_files_alone(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "plain", ignore=shutil.ignore_patterns(".git"))
    done = amb("demo", "--input", "plain", "--json", cwd=tmp_path)
    summary = json.loads(done.out)
    assert (done.code, summary["announced"], "agents.work.commit" in summary["topics"]) == (0, FILES, False)
    assert "no history" in done.err


@pytest.mark.parametrize("kind", ["no commits", "empty"])
def test_odd_folders(kind: str, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    if kind == "empty":
        done = amb("demo", "--input", str(tmp_path))
        assert done.code == ExitCode.NOT_FOUND
        assert "neither commits nor files" in done.complaint
    else:
        (tmp_path / "a.txt").write_text("one\n")
        summary = json.loads(amb("demo", "--input", str(tmp_path), "--json").out)
        assert (summary["announced"], summary["handled"]) == (1, 1)


def test_work_that_somebody_takes_and_does_not_do_is_lost_aloud(redis: dict[str, str], tmp_path: Path) -> None:
    many(tmp_path)
    thief = ("subscribe", "agents.work.*", "--group", "analysts", "--count", "2", "--json")
    with started(*thief, log=tmp_path.parent / "thief", env=redis) as running:
        running.until("subscribed to")
        done = amb("demo", "--input", str(tmp_path), "--limit", "3000", "--patience", "3", env=redis)
        taken = [json.loads(running.line()) for _ in range(2)]
    assert done.code == ExitCode.FAILED
    work = [message["data"]["path"] for message in taken if message["topic"] == "agents.work.file"]
    orders = sum(message["topic"] == "agents.work.order" for message in taken)
    assert f"LOST, neither handled nor a dead letter: {len(work)}" in done.out or not work
    assert all(f"  file {path}\n" in done.out for path in work)
    assert (f"LOST: {orders} orders were not obeyed" in done.out) == bool(orders)
    assert "the account does not balance" in done.err.splitlines()[-1]


def test_a_redis_that_restarts_in_the_middle_costs_nothing(own_redis_server: RedisServer, tmp_path: Path) -> None:
    many(tmp_path)
    env = {"AMB_BROKER": "redis", "AMB_REDIS_URL": own_redis_server.url}
    with started("demo", "--input", str(tmp_path), "--limit", "3000", log=tmp_path.parent / "away", env=env) as running:
        begun(running, env)
        assert own_redis_server.process is not None
        own_redis_server.process.restart()
        running.until("the broker is away")
        running.until("the broker is back")
        assert running.process.stdout is not None
        shown = running.process.stdout.read()
        assert running.process.wait(20) == 0, running.said + shown
    assert "Account: 3000 announced = 3000 handled + 0 dead letters + 0 lost" in shown


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["memory", "redis"])
def test_it_can_be_ended_any_time_and_leaves_no_process(
    where: str, how: signal.Signals, redis: dict[str, str], tmp_path: Path
) -> None:
    many(tmp_path)
    mark = f"AMB_TEST_MARK={secrets.token_hex(8)}"
    env = dict([mark.split("=")]) | (redis if where == "redis" else {})
    with started(
        "demo", "--input", str(tmp_path), "--limit", "3000", "-v", log=tmp_path.parent / f"{where}{how}", env=env
    ) as running:
        running.until("agents (together|in 6 processes)")
        if where == "redis":
            begun(running, env)
            assert len(marked(mark)) >= 5, "all but the reader, who may have read everything by now"
        code, seconds = running.end(how)
        assert code == ExitCode.INTERRUPTED, running.said
        assert seconds < 6  # a bus may take half a minute
        assert none_left(mark)
        assert "Traceback" not in running.said


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""


def test_a_process_that_dies_ends_the_demo_with_one_line(redis: dict[str, str], tmp_path: Path) -> None:
    many(tmp_path)
    mark = f"AMB_TEST_MARK={secrets.token_hex(8)}"
    env = redis | dict([mark.split("=")])
    with started("demo", "--input", str(tmp_path), "--limit", "3000", log=tmp_path.parent / "log", env=env) as running:
        begun(running, env)
        victim = next(pid for pid in marked(mark) if b"reviewer" in _command(pid))
        os.kill(victim, signal.SIGKILL)
        assert running.process.wait(20) == ExitCode.FAILED
        assert running.said.splitlines()[-1] == "amb: the process of the reviewer ended early with code -9"
        assert none_left(mark)


def test_an_unreachable_broker_is_one_line_and_its_code(repository: Path) -> None:
    done = amb("demo", "--input", str(repository), env={"AMB_BROKER": "redis", "AMB_REDIS_URL": "redis://127.0.0.1:1"})
    assert (done.code, done.out) == (ExitCode.UNREACHABLE, "")
    assert "127.0.0.1:1" in done.err.splitlines()[-1]
    assert len(done.err.splitlines()) == 3


def test_a_misspelt_broker_is_corrected() -> None:
    done = amb("demo", env={"AMB_BROKER": "rediss"})
    assert done.code == ExitCode.NOT_FOUND
    assert "did you mean 'redis'" in done.complaint


def test_files_are_looked_at_side_by_side(tmp_path: Path) -> None:
    """Python fails a tree during whose making another thread makes one. Only collecting garbage lets that one in."""
    (tmp_path / "long.py").write_text("x = 1\n" * 500)
    file, let_others_in = File(str(tmp_path), "long.py"), lambda *_: time.sleep(0.0001)
    thresholds = gc.get_threshold()
    gc.callbacks.append(let_others_in)
    gc.set_threshold(200)
    try:
        with ThreadPoolExecutor(4) as threads:
            looks = list(threads.map(lambda _: look_at_file(file, 2), range(40)))
    finally:
        gc.callbacks.remove(let_others_in)
        gc.set_threshold(*thresholds)
    assert looks == [{"lines": 500, "todos": 0, "functions": 0, "classes": 0}] * 40
