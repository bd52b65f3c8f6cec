"""The analysts: a group that shares the work. Some of it fails, as work does."""

from __future__ import annotations

import ast
import json
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec

from amb_core import Message, MessageBus, RetryPolicy

from .messages import Change, Commit, File, Finding, Obeyed, Opinion, Order, Review
from .rollcall import answer_as
from .tell import tell

#: Bytes of a file that a first, quick look takes in, and that any look does.
QUICK, MOST = 16_384, 1_048_576
#: Changed lines from which one reviewer is asked, and from which all are.
WORTH_A_REVIEW, WORTH_A_PANEL = 50, 300
REVIEWERS = 3
#: One thread at a time makes a tree: Python counts the depth of all of them together, and fails a tree whose count
#: another thread has changed (SystemError; seen with 3.11).
_PARSING = threading.Lock()


class LookAgain(Exception):
    """A quick look was not enough; the next attempt looks closer."""


class GitFailed(Exception):
    """git refused; the text is its own."""


#: A file that is no UTF-8 will be none next time either; the rest may pass.
WORTH_RETRYING = (LookAgain, GitFailed, TimeoutError, ConnectionError)


def analyst(bus: MessageBus) -> None:
    """Take a share of the work and of the governor's orders."""
    answer_as(bus, "analyst")

    # One subscription for work and orders: a CRITICAL order overtakes the work that waits in it.
    @bus.subscriber(
        "agents.work.*",
        group="analysts",
        concurrency=4,
        retry_policy=RetryPolicy(max_retries=2, initial_delay=0.1, max_delay=1.0, retryable_exceptions=WORTH_RETRYING),
    )
    async def work(message: Message) -> None:
        begun = time.time()
        if message.topic == "agents.work.order":
            number = msgspec.convert(message.data, Order).number
            obeyed = Obeyed(message.id, number, float(message.timestamp), begun)
            await tell(bus, Message("agents.report", obeyed, id=f"{message.id}-obeyed", sender="analyst"))
        elif message.topic == "agents.work.file":
            file = msgspec.convert(message.data, File)
            facts = await anyio.to_thread.run_sync(look_at_file, file, message.attempt)
            await report(message, file.name, begun, facts)
        elif message.topic == "agents.work.commit":
            commit = msgspec.convert(message.data, Commit)
            changes = await look_at_commit(commit, message.attempt)
            asked = time.time()
            opinions = await opinions_on(commit, changes)
            facts = {
                "files": len(changes),
                "added": sum(c.added for c in changes),
                "removed": sum(c.removed for c in changes),
            }
            await report(message, commit.name, begun, facts, opinions, time.time() - asked if opinions else None)

    async def opinions_on(commit: Commit, changes: list[Change]) -> list[Opinion]:
        review, lines = Review(commit.subject, changes), sum(change.added + change.removed for change in changes)
        if lines >= WORTH_A_PANEL:
            replies = await bus.scatter(
                "agents.review.panel", review, timeout=30, min_responses=1, max_responses=REVIEWERS
            )
        elif lines >= WORTH_A_REVIEW:
            replies = [await bus.request("agents.review.one", review, timeout=30)]
        else:
            replies = []
        return [msgspec.convert(reply.data, Opinion) for reply in replies]

    async def report(
        message: Message,
        name: str,
        begun: float,
        facts: dict[str, int],
        opinions: list[Opinion] | None = None,
        review: float | None = None,
    ) -> None:
        finding = Finding(
            message.id, name, message.attempt, float(message.timestamp), begun, facts, opinions or [], review
        )
        await tell(bus, Message("agents.finding", finding, id=f"{message.id}-finding", sender="analyst"))


async def look_at_commit(commit: Commit, attempt: int) -> list[Change]:
    """What the commit changed. The quick way shows nothing for a merge, nor for the first commit, which has no
    parent to be compared with either: that one never succeeds.

    Raises: LookAgain, GitFailed.
    """
    quick = ["diff-tree", "-r", "--no-commit-id", "--numstat", commit.sha]
    closer = ["diff", "--numstat", f"{commit.sha}^", commit.sha]
    done = await anyio.run_process(["git", "-C", commit.repository, *(quick if attempt == 1 else closer)], check=False)
    if done.returncode != 0:
        raise GitFailed(done.stderr.decode(errors="replace").partition("\n")[0])
    rows = [line.split("\t", 2) for line in done.stdout.decode(errors="replace").splitlines()]
    if not rows and attempt == 1:
        raise LookAgain(f"a quick look shows no changes in a commit with {commit.parents} parents")
    # git counts no lines in binary files, and writes a dash
    return [Change(path, *(int(number) if number.isdigit() else 0 for number in numbers)) for *numbers, path in rows]


def look_at_file(file: File, attempt: int) -> dict[str, int]:
    """Numbers about a file that must be what its name says. Blocks: runs in a thread.

    Raises: LookAgain, ValueError (not UTF-8, not JSON, not TOML, too big), SyntaxError, OSError (gone).
    """
    path = Path(file.repository, file.path)
    size = path.stat().st_size
    if size > MOST:
        raise ValueError(f"{size} bytes are more than anybody reads")
    if size > QUICK and attempt == 1:
        raise LookAgain(f"{size} bytes are too many for a quick look")
    text = path.read_bytes().decode()
    parsed = PARSERS.get(path.suffix, no_parser)(text)
    return {"lines": text.count("\n"), "todos": text.count("TODO"), **parsed}


def python(text: str) -> dict[str, int]:
    """Raises: SyntaxError, ValueError."""
    with _PARSING:
        tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)
    return {"functions": functions, "classes": sum(isinstance(node, ast.ClassDef) for node in nodes)}


def keys(value: object) -> dict[str, int]:
    """How many entries a parsed document has."""
    return {"keys": len(value) if isinstance(value, dict | list) else 0}


def no_parser(text: str) -> dict[str, int]:
    """Text is text."""
    return {}


PARSERS: dict[str, Callable[[str], dict[str, int]]] = {
    ".py": python,
    ".json": lambda text: keys(json.loads(text)),
    ".toml": lambda text: keys(tomllib.loads(text)),
}
