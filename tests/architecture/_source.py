"""The source tree as the architecture tests read it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec

from scripts import build

ROOT = build.ROOT
CORE = ROOT / "amb-core" / "src" / "amb_core"
#: What is built on the bus.
KERNEL = ROOT / "amb-kernel" / "src" / "amb_kernel"
#: The package folder of every backend.
BACKENDS = [
    folder / "src" / build.metadata(folder)["package"]
    for folder in build.folders()
    if folder.name not in ("amb-core", "amb-kernel")
]


class Import(msgspec.Struct, frozen=True):
    """One imported module, absolute, and the name taken from it; empty: the module itself."""

    module: str
    name: str
    #: Runs when the module is imported: at its top level, and not for type checkers alone.
    eager: bool
    where: str


def modules(package: Path) -> list[Path]:
    """Every module of a package folder."""
    return sorted(package.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    """A module's syntax."""
    return ast.parse(path.read_text(), str(path))


def place(path: Path, node: ast.AST) -> str:
    """``file:line`` for a message."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def dotted(path: Path) -> str:
    """The import name of a module in one of our packages."""
    parts = list(path.with_suffix("").parts)
    parts = parts[parts.index("src") + 1 :]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[Import]:
    """Every import in a module, wherever it stands."""
    yield from _imports(path, tree(path), True)


def _imports(path: Path, node: ast.AST, eager: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, "", eager, place(path, node))
    elif isinstance(node, ast.ImportFrom):
        module = _absolute(path, node)
        for alias in node.names:
            yield Import(module, alias.name, eager, place(path, node))
    for child in ast.iter_child_nodes(node):
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_checkers(node)
        yield from _imports(path, child, eager and not later)


def _for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = dotted(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a module: what is called, as written, and where."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
