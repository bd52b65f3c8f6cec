"""The table of all snippets is true: its tests are there, and run the blocks that the texts have."""

from __future__ import annotations

import ast

import pytest

from . import _table
from ._table import Row

ROWS = _table.rows()
SNIPPETS = [row for row in ROWS if row.snippet]


def named(row: Row) -> str:
    return f"{row.text}-{row.lines}"


def test_every_text_is_in_the_table() -> None:
    assert {row.text for row in ROWS} == {"000", "001", "002", "003", "004"}
    assert len({(row.text, row.lines) for row in ROWS}) == len(ROWS) >= 79


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_block_has_tests_or_a_reason(row: Row) -> None:
    assert bool(row.tests) == bool(row.module) != bool(row.reason)
    for name in row.tests:
        assert row.module and _table.uses(row.module, name), f"{row.module} has no {name}"


@pytest.mark.parametrize("row", SNIPPETS, ids=named)
def test_a_snippet_is_the_block_of_the_text_and_is_run(row: Row) -> None:
    assert _table.fingerprint(_table.constants(row.module)[row.snippet]) == row.fingerprint
    idle = [name for name in row.tests if row.snippet not in _table.uses(row.module, name)]
    assert not idle, f"these tests do not run {row.snippet}: {idle}"


def test_a_word_more_or_less_is_another_block() -> None:
    assert _table.fingerprint("a = 1\n b = 2") == _table.fingerprint("a=1\nb = 2\nc = 3 # added\n")
    assert _table.fingerprint("a = 1") != _table.fingerprint("a = 1 # more")


IMPORTS = sorted({
    (node.module, alias.name)
    for row in SNIPPETS
    if "import " in (text := _table.constants(row.module)[row.snippet])
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("agent_os", "amb_core"))
    for alias in node.names
})  # fmt: skip


@pytest.mark.parametrize(("module", "name"), IMPORTS)
def test_every_import_of_the_texts_works(module: str, name: str) -> None:
    assert {each for each, _ in IMPORTS} >= {"agent_os", "agent_os.amb", "agent_os.amb.adapters", "amb_core.adapters"}
    names: dict[str, object] = {}
    exec(f"from {module} import {name}", names)
    assert names[name] is not None
