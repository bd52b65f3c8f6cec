"""The table in ``README.md``: which block of which requirement text is run by which test.

The texts are not in the repository, so the table has a fingerprint of each block, and a test proves that the snippet
that is run has it. ``python -m tests.snippets._table FOLDER`` proves that the texts in a folder have it too.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from functools import cache
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
#: What a line ends with that the page does not have.
ADDED = "# added"


class Row(msgspec.Struct, frozen=True):
    """A block of a text."""

    text: str
    #: Such as ``28-34`` or ``25,29-32``.
    lines: str
    section: str
    #: The test module and its constant that has the block; no constant: the block is a table or a list.
    module: str
    snippet: str
    fingerprint: str
    tests: tuple[str, ...]
    #: Why there is no test.
    reason: str


def rows() -> list[Row]:
    """All rows of the table."""
    found = re.findall(r"^\| (\d{3}) \|(.*)\|$", (HERE / "README.md").read_text(), re.MULTILINE)
    return [_row(text, [cell.strip() for cell in rest.split("|")]) for text, rest in found]


def _row(text: str, cells: list[str]) -> Row:
    lines, section, snippet, fingerprint, tests = cells
    module, _, constant = snippet.strip("`").partition(".")
    named = tuple(re.findall(r"`(test_\w+)`", tests))
    return Row(text, lines, section, module, constant, fingerprint.strip("`"), named, "" if named else tests)


def fingerprint(block: str) -> str:
    """The same for the same words: neither white space (one of the texts has lost its indentation) nor lines that the
    page does not have count."""
    kept = "".join(line for line in block.splitlines() if not line.endswith(ADDED))
    return hashlib.sha256("".join(kept.split()).encode()).hexdigest()[:12]


@cache
def tree(module: str) -> ast.Module:
    """The syntax of a test module."""
    return ast.parse((HERE / f"{module}.py").read_text())


def constants(module: str) -> dict[str, str]:
    """The texts at the top level of a test module."""
    return {
        node.targets[0].id: node.value.value
        for node in tree(module).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }  # fmt: skip


def uses(module: str, name: str) -> set[str]:
    """Every name that a function of a module uses, also by way of other functions and tables of the module."""
    definitions = {
        target: node
        for node in tree(module).body
        for target in _defined(node)
    }  # fmt: skip
    found, pending = set[str](), [name]
    while pending:
        node = definitions.get(pending.pop())
        new = set() if node is None else {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} - found
        found |= new
        pending += new
    return found


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def block(text: str, lines: str) -> str:
    """The lines of a text."""
    each = text.splitlines()
    parts = [part.partition("-") for part in lines.split(",")]
    return "\n".join("\n".join(each[int(first) - 1 : int(last or first)]) for first, _, last in parts)


def main(folder: Path) -> int:
    """How many rows the texts in `folder` do not bear out; each is printed."""
    wrong = 0
    for row in rows():
        (file,) = folder.glob(f"{row.text}_*.txt")
        if fingerprint(block(file.read_text(), row.lines)) != row.fingerprint:
            print(f"{file.name}, lines {row.lines} ({row.section}): another block than the table's")
            wrong += 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
