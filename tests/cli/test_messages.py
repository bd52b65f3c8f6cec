"""publish, subscribe, request, scatter and dlq, in processes that share a Redis."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from amb_core.cli._exit import ExitCode

from ._amb import Running, amb, started

PROGRAM = """
from amb_core import DeadLetterQueue, Message, MessageBus

bus = MessageBus(dead_letter_queue=DeadLetterQueue("shop-dead", max_retries=0))


@bus.responder("shop.add")
async def add(request: Message) -> int:
    return sum(request.data)


@bus.responder("shop.ready")
async def first(request: Message) -> str:
    return "first"


@bus.responder("shop.ready")
async def second(request: Message) -> str:
    return "second"


@bus.responder("shop.fail")
async def fail(request: Message) -> None:
    raise ValueError(f"no {request.data} in stock")


@bus.subscriber("shop.orders", group="clerks")
async def order(message: Message) -> None:
    raise RuntimeError(f"cannot sell {message.data}")
"""


@pytest.fixture
def shop(redis: dict[str, str], tmp_path: Path) -> Iterator[Running]:
    """The program above, run by ``amb run``, live."""
    (tmp_path / "shop.py").write_text(PROGRAM)
    with started("run", "shop:bus", log=tmp_path / "log", env=redis, cwd=tmp_path) as running:
        running.until("is live on RedisBroker")
        yield running


def test_published_messages_reach_a_tap_that_prints_them_as_json(redis: dict[str, str], tmp_path: Path) -> None:
    with started("tap", "logs.#", "--count", "3", "--json", log=tmp_path / "log", env=redis) as tap:
        tap.until("subscribed to")
        amb(
            "publish",
            "logs.web.error",
            '{"n": 1}',
            "--header",
            "team=web",
            "--key",
            "k",
            "--priority",
            "HIGH",
            env=redis,
        )
        done = amb("publish", "logs.db", "-", "--lines", "--json", stdin="[2]\n\nplain text\n", env=redis)
        assert [json.loads(line)["topic"] for line in done.out.splitlines()] == ["logs.db"] * 2
        seen = [json.loads(tap.line()) for _ in range(3)]
        assert tap.process.wait(20) == 0
    assert [message["data"] for message in seen] == [{"n": 1}, [2], "plain text"]
    assert {name: seen[0][name] for name in ("topic", "priority", "key", "headers", "sender")} == {
        "topic": "logs.web.error", "priority": "high", "key": "k", "headers": {"team": "web"}, "sender": "amb-cli",
    }  # fmt: skip


def test_a_group_gets_what_was_published_before_it_came(redis: dict[str, str]) -> None:
    ident = amb("publish", "jobs", "-", stdin="5\n", env=redis).out.strip()
    options = ("--group", "g", "--start", "earliest", "--count", "1", "--timeout", "20", "--json")
    got = json.loads(amb("subscribe", "jobs", *options, env=redis).out)
    assert (got["id"], got["data"]) == (ident, 5)
    again = amb("subscribe", "jobs", *options[:-2], "0.5", env=redis)
    assert again.code == ExitCode.TIMEOUT, "a group's message is consumed"


def test_a_message_cannot_write_to_the_terminal(redis: dict[str, str], tmp_path: Path) -> None:
    with started("tap", "logs", "--count", "1", log=tmp_path / "log", env=redis) as tap:
        tap.until("subscribed to")
        amb("publish", "logs", "a\x1b[2Jb\nc", env=redis)
        assert tap.line().rstrip("\n").endswith(r"logs  a\x1b[2Jb\nc")


def test_ctrl_c_ends_a_tap_quietly(redis: dict[str, str], tmp_path: Path) -> None:
    with started("tap", "logs.#", log=tmp_path / "log", env=redis) as tap:
        tap.until("subscribed to")
        code, seconds = tap.end()
    assert code == ExitCode.INTERRUPTED
    assert seconds < 8
    assert all(line.startswith("amb: note:") for line in tap.said.splitlines()), tap.said


def test_a_broken_pipe_ends_a_tap_quietly(redis: dict[str, str], tmp_path: Path) -> None:
    with started("tap", "logs", "--json", log=tmp_path / "log", env=redis) as tap:
        tap.until("subscribed to")
        assert tap.process.stdout is not None
        tap.process.stdout.close()
        amb("publish", "logs", "1", env=redis)
        assert tap.process.wait(20) == ExitCode.BROKEN_PIPE
    assert all(line.startswith("amb: note:") for line in tap.said.splitlines()), tap.said


def test_a_request_is_answered(shop: Running, redis: dict[str, str]) -> None:
    assert amb("request", "shop.add", "[1, 2, 3]", env=redis).out == "6\n"
    assert json.loads(amb("request", "shop.add", "[4]", "--json", env=redis).out)["data"] == 4


def test_a_failing_responder_says_why(shop: Running, redis: dict[str, str]) -> None:
    done = amb("request", "shop.fail", "milk", env=redis)
    assert done.code == ExitCode.REMOTE
    assert "ValueError: no milk in stock" in done.complaint


def test_nobody_answering_in_time_is_a_timeout(redis: dict[str, str]) -> None:
    done = amb("request", "shop.nobody", "1", "--timeout", "0.3", env=redis)
    assert done.code == ExitCode.TIMEOUT


def test_scatter_prints_every_reply_and_fails_when_there_are_too_few(shop: Running, redis: dict[str, str]) -> None:
    both = amb("scatter", "shop.ready", "null", "--max", "2", "--timeout", "20", env=redis)
    assert (both.code, sorted(both.out.split())) == (0, ["first", "second"])
    few = amb("scatter", "shop.ready", "null", "--min", "3", "--timeout", "5", "--json", env=redis)
    assert (few.code, len(few.out.splitlines())) == (ExitCode.TIMEOUT, 2)
    assert "2 of 3 replies" in few.complaint


def test_dead_letters_are_listed_shown_retried_and_dropped(shop: Running, redis: dict[str, str]) -> None:
    def letters() -> list[dict[str, object]]:
        listed = amb("dlq", "list", "--topic", "shop-dead", "--json", env=redis).out.splitlines()
        return [json.loads(line) for line in listed]

    ids = [amb("publish", "shop.orders", name, env=redis).out.strip() for name in ("milk", "eggs")]
    while len(found := letters()) < 2:
        assert shop.process.poll() is None
    assert {letter["id"]: letter["data"] for letter in found} == dict(zip(ids, ("milk", "eggs"), strict=True))
    assert "RuntimeError: cannot sell milk" in amb("dlq", "show", ids[0], "--topic", "shop-dead", env=redis).out
    assert amb("dlq", "drop", "nosuchid", "--topic", "shop-dead", env=redis).code == ExitCode.NOT_FOUND

    assert shop.end(signal.SIGTERM)[0] == 0
    assert amb("dlq", "retry", ids[0], "--topic", "shop-dead", env=redis).out == "retried 1 dead letter\n"
    options = ("--group", "clerks", "--count", "1", "--timeout", "20", "--json")
    again = json.loads(amb("subscribe", "shop.orders", *options, env=redis).out)
    assert (again["id"], again["data"], again["attempt"]) == (ids[0], "milk", 1)
    assert amb("dlq", "drop", "--all", "--topic", "shop-dead", "--json", env=redis).out == '{"dropped":1}\n'
    assert letters() == []
