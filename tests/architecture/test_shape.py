"""Files and functions small enough to read, and every helper written once."""

from __future__ import annotations

import ast
import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from ._source import BACKENDS, CORE, KERNEL, functions, modules, place, tree

PACKAGES = [CORE, *BACKENDS, KERNEL]
OURS = [path for package in PACKAGES for path in modules(package)]
#: The contract: mostly prose, and meant to be read as one.
PROSE = {"broker.py"}
LONGEST, RARELY = 400, 600


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its signature and its docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_file_is_too_long_to_read(package: Path) -> None:
    """About 150 lines, rarely over 400."""
    lengths = {path: len(path.read_text().splitlines()) for path in modules(package) if path.name not in PROSE}
    long = {str(path.relative_to(package)): length for path, length in lengths.items() if length > LONGEST}
    assert len(long) <= 0.05 * len(lengths), long
    assert max(lengths.values()) <= RARELY, long
    assert statistics.median(lengths.values()) <= 180


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_functions_are_short(package: Path) -> None:
    lengths = sorted(code_lines(node) for path in modules(package) for node in functions(path))
    assert statistics.median(lengths) <= 10
    assert sum(length <= 30 for length in lengths) >= 0.9 * len(lengths)


def test_no_helper_is_written_twice() -> None:
    """Two functions of some size with the same body are one function in the wrong place."""
    seen: dict[str, list[str]] = defaultdict(list)
    for path in OURS:
        for node in functions(path):
            if code_lines(node) >= 4:
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                seen["\n".join(ast.unparse(statement) for statement in body)].append(f"{place(path, node)} {node.name}")
    assert [places for places in seen.values() if len(places) > 1] == []


def test_nothing_is_inherited_between_our_classes() -> None:
    """Data inherits from msgspec, errors from errors, contracts from Protocol: no base classes of our own."""
    classes = [(path, node) for path in OURS for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    defined = {node.name: node for _, node in classes}
    wrong = [
        f"{place(path, node)}: {node.name}({ast.unparse(base)})"
        for path, node in classes
        for base in node.bases
        if (name := ast.unparse(base).partition("[")[0]) not in foreign(path)
        if (parent := defined.get(name)) and not may_be_inherited(parent, path)
    ]
    assert not wrong, wrong


def foreign(path: Path) -> set[str]:
    """The names that a module has from others' distributions."""
    froms = (node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and not node.level)
    return {
        name.asname or name.name for node in froms if not (node.module or "").startswith("amb_") for name in node.names
    }


def may_be_inherited(base: ast.ClassDef, path: Path) -> bool:
    """Errors form a tree by what the reader can do, typed dicts only add keys, and click's commands are classes."""
    bases = {ast.unparse(above) for above in base.bases}
    return path.name == "errors.py" or "cli" in path.parts or "TypedDict" in bases or base.name.endswith("Error")


def test_every_module_begins_with_what_it_is_for() -> None:
    assert [str(path) for path in OURS if not ast.get_docstring(tree(path))] == []


def test_every_public_name_says_what_it_gives() -> None:
    wrong = [
        f"{place(path, node)}: {node.name}"
        for path in OURS
        if not any(part.startswith("_") and part != "__init__.py" for part in path.parts[path.parts.index("src") :])
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not wrong, wrong


def test_everything_is_annotated_for_the_future() -> None:
    without = [
        str(path)
        for path in OURS
        if any(functions(path)) and "from __future__ import annotations" not in path.read_text()
    ]
    assert without == []


def test_public_modules_state_what_they_offer() -> None:
    wrong = []
    for path in OURS:
        stated = re.search(r"^__all__\s*=\s*(\[.*?\])", path.read_text(), re.MULTILINE | re.DOTALL)
        if stated:
            names = ast.literal_eval(stated[1])
            if names != sorted(set(names), key=lambda name: (not name.isupper(), not name[0].isupper(), name)):
                wrong.append(str(path))
    assert not wrong, wrong
