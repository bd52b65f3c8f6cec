"""Every mistake is one line that says what to do, and a documented exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from amb_core.cli._exit import MEANINGS, ExitCode

from ._amb import amb

MISTAKES = [
    ("publsh a 1", 2, "did you mean 'publish'"),
    ("dlq lsit", 2, "did you mean 'list'"),
    ("publish a 1 --borker redis", 2, "--broker"),
    ("publish a", 2, "Missing argument 'PAYLOAD'"),
    ("publish a {a:1}", 2, "looks like JSON but is not .* --text"),
    ("publish a..b 1", 2, "'a..b' has an empty word"),
    ("publish a 1 --ttl -3", 2, "above 0 seconds"),
    ("publish a 1 --header x", 2, "must look like name=value"),
    ("publish a 1 --broker redsi", 4, "did you mean 'redis'"),
    ("publish a 1 --broker redis://127.0.0.1:1 --connect-timeout 0.2", 3, "127.0.0.1:1"),
    ("request nobody 1 --timeout 0.2", 5, "nobody is subscribed to 'nobody'"),
    ("scatter nobody 1 --timeout 0.1 --min 1", 5, "0 of 1 replies on 'nobody'"),
    ("subscribe a --count 1 --timeout 0.1", 5, "0 of 1 messages"),
    ("conform memory --only Z9", 2, "no such conformance case: Z9"),
    ("run nosuchmodule:bus", 4, "no module 'nosuchmodule'"),
    ("run module", 2, "must look like module:bus"),
    ("dlq show 17", 4, "no dead letter 17"),
    ("dlq drop", 2, "name the dead letters by ID, or say --all"),
    ("demo --input /no/such/folder", 4, "'/no/such/folder' is no folder"),
]


@pytest.mark.parametrize(("line", "code", "pattern"), MISTAKES, ids=[line for line, *_ in MISTAKES])
def test_a_mistake_is_one_line_and_a_code(line: str, code: int, pattern: str) -> None:
    done = amb(*line.split())
    assert (done.code, done.out) == (code, "")
    assert re.search(pattern, done.complaint), done.err


def test_a_misspelt_broker_in_the_environment_is_named_with_what_was_meant() -> None:
    done = amb("publish", "a", "1", env={"AMB_BROKER": "memroy"})
    assert done.code == ExitCode.NOT_FOUND
    assert "did you mean 'memory'" in done.complaint


def test_what_the_broker_cannot_do_is_refused(redis: dict[str, str]) -> None:
    done = amb("dlq", "list", env=redis | {"AMB_REDIS_USE_STREAMS": "false"})
    assert done.code == ExitCode.UNSUPPORTED
    assert "dead letters" in done.complaint


def test_a_password_in_a_url_shows_nowhere() -> None:
    url = "redis://shop:opensesame@127.0.0.1:1"
    done = amb("publish", "a", "1", "--url", url, "--connect-timeout", "0.2", env={"AMB_DEBUG": "1"})
    assert done.code == ExitCode.UNREACHABLE
    assert "opensesame" not in done.out + done.err


def test_debugging_shows_the_traceback() -> None:
    done = amb("publish", "a..b", "1", env={"AMB_DEBUG": "1"})
    assert "Traceback" in done.err


def test_a_program_that_fails_while_it_is_imported_is_one_line_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("from amb_core import MessageBus\n\nbus = MessageBus(brokre='memory')\n")
    done = amb("run", "broken:bus", cwd=tmp_path)
    assert done.code == ExitCode.USAGE
    assert "broken.py:3: TypeError" in done.complaint


def test_a_misspelt_bus_of_a_program_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from amb_core import MessageBus\n\nshop_bus = MessageBus()\nnumber = 6\n")
    done = amb("run", "shop:shop_bsu", cwd=tmp_path)
    assert done.code == ExitCode.NOT_FOUND
    assert "did you mean 'shop_bus'" in done.complaint
    assert "is a int, not a MessageBus" in amb("run", "shop:number", cwd=tmp_path).complaint


def test_help_shows_every_exit_code_and_every_command_has_examples() -> None:
    shown = amb("--help").out
    for code in ExitCode:
        assert re.search(rf"^  {int(code)} +{re.escape(MEANINGS[code][:20])}", shown, re.MULTILINE), code
    commands = re.findall(r"^  ([a-z]+)  ", shown.partition("Commands:")[2].partition("Exit codes:")[0], re.MULTILINE)
    assert {"demo", "publish", "subscribe", "tap", "request", "scatter", "run", "dlq"} <= set(commands)
    for command in commands:
        described = amb(command, "--help").out
        assert f"amb {command}" in described.partition("Examples:")[2] or command == "tap", command
