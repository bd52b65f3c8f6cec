"""A documentation page as the blocks that a reader would type."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
#: Where the pages say that the servers are.
THEIR_REDIS = "redis://localhost:6379/0"
THEIR_NATS = "nats://localhost:4222"
THEIR_RABBITMQ = "amqp://guest:guest@localhost:5672/"
THEIR_SQS = "http://localhost:4566"
THEIR_AZURE = "sb://localhost:5672"
THEIR_KAFKA = "localhost:9092"
THEIR_REGISTRY = "http://localhost:8081"
_OPEN = re.compile(r"^(?P<fence>`{3,})(?P<language>\S*)(?:[ \t]+title=\"(?P<title>[^\"]+)\")?[ \t]*$")


class Block(msgspec.Struct, frozen=True):
    """One fenced block."""

    language: str
    #: The file it is to be saved as; empty: it is run where it stands.
    title: str
    text: str
    #: Where its text begins, counted from 1.
    line: int


class Step(msgspec.Struct, frozen=True):
    """One command of a console block, and what it must print ("..." stands for anything); empty: whatever it prints."""

    command: str
    expected: str


def pages() -> list[Path]:
    """Every page whose blocks are run."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page. Raises: ValueError for one that does not end, or whose opening line is malformed."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        if lines[at].startswith("```"):
            opened = _OPEN.match(lines[at])
            if opened is None:
                raise ValueError(f"{page}:{at + 1}: cannot read {lines[at]!r}")
            try:
                end = lines.index(opened["fence"], at + 1)
            except ValueError:
                raise ValueError(f"{page}:{at + 1}: the block does not end") from None
            text = "\n".join(lines[at + 1 : end]) + "\n"
            found.append(Block(opened["language"], opened["title"] or "", text, at + 2))
            at = end
        at += 1
    return found


def steps(text: str) -> list[Step]:
    """The commands of a console block. Raises: ValueError for output without a command."""
    found: list[Step] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], ""))
        elif not found:
            raise ValueError(f"output before the first command: {line!r}")
        else:
            last = found[-1]
            found[-1] = Step(last.command, last.expected + line + "\n")
    return found


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is what the page shows."""
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None
