"""The walls of the house: what may import what, and who may start or wait for things."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import amb_core
import pytest

from ._source import BACKENDS, CORE, KERNEL, Import, calls, dotted, imports, modules, place, tree

#: All that a backend may take from the core.
PUBLIC = {
    "amb_core.broker",
    "amb_core.concurrency",
    "amb_core.config",
    "amb_core.errors",
    "amb_core.hookspecs",
    "amb_core.lanes",
    "amb_core.serializer",
    "amb_core.topics",
}
#: What the core may be built on.
DEPENDENCIES = {"amb_core", "anyio", "click", "msgspec", "pluggy", "tenacity"}
#: Needed by a part of the core that is asked for by name; imported there and only then.
ON_DEMAND = {
    "fastavro": {"serializers"},
    "google": {"serializers"},
    "trio": {"concurrency.py", "_lifecycle.py", "testing"},
    "uvloop": {"testing", "cli"},
    "hypothesis": {"testing"},
    "pytest": {"testing"},
    "opentelemetry": {"observability"},
    "prometheus_client": {"observability"},
}
#: Modules that are imported on demand as a whole.
LATE = {"_avro.py", "_opentelemetry.py", "_prometheus.py", "_proto.py", "_proto_schema.py", "_spans.py"}
#: The modules that know an event loop by its name.
LOOPS = {"amb_core.concurrency", "amb_core._lifecycle"}
#: Where the core may name brokers: what to install, the documented import paths, the examples of the command line.
NAMES_BROKERS = {"_advice.py", "adapters", "cli", "demo"}
BROKERS = re.compile(r"[\w-]*(?:redis|kafka|rabbit|nats|sqs|azure)[\w-]*", re.IGNORECASE)


def core_modules(*, without: tuple[str, ...] = ()) -> list[Path]:
    return [path for path in modules(CORE) if path.relative_to(CORE).parts[0] not in without]


def foreign(found: Import) -> str | None:
    """The first name of a module outside the standard library."""
    top = found.module.partition(".")[0]
    return None if top in sys.stdlib_module_names else top


@pytest.mark.parametrize("package", BACKENDS, ids=lambda package: package.name)
def test_a_backend_imports_only_the_public_contract(package: Path) -> None:
    wrong = [
        f"{found.where}: {found.module} {found.name}"
        for path in modules(package)
        for found in imports(path)
        if found.module.partition(".")[0] == "amb_core"
        and f"{found.module}.{found.name}" not in PUBLIC
        and (found.module not in PUBLIC or found.name.startswith("_"))
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", BACKENDS, ids=lambda package: package.name)
def test_a_backend_starts_no_tasks_and_no_threads(package: Path) -> None:
    starters = re.compile(r"(create_task|ensure_future|start_soon|run_coroutine_threadsafe|to_thread\.\w+|Thread)$")
    wrong = [
        f"{place(path, call)}: {name}"
        for path in modules(package)
        for name, call in calls(path)
        if starters.search(name)
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", BACKENDS, ids=lambda package: package.name)
def test_a_backend_has_the_files_that_every_backend_has(package: Path) -> None:
    names = {path.name for path in modules(package)}
    assert {"__init__.py", "plugin.py", "broker.py", "_connection.py", "_feed.py", "_wire.py"} <= names
    assert {name for name in names if not name.startswith("_")} == {"plugin.py", "broker.py"}


@pytest.mark.parametrize("package", BACKENDS, ids=lambda package: package.name)
def test_a_backend_is_found_without_its_client(package: Path) -> None:
    """`plugin.py` and `broker.py` are imported to read capabilities; the client is needed to connect."""
    own = {package.name, "amb_core", "msgspec"}
    wrong = [
        f"{found.where}: {found.module}"
        for name in ("__init__.py", "plugin.py", "broker.py")
        for found in imports(package / name)
        if found.eager and foreign(found) not in {None, *own}
    ]
    assert not wrong, wrong


def test_the_core_knows_no_backend_and_no_client() -> None:
    allowed = {None, *DEPENDENCIES, *ON_DEMAND}
    wrong = [
        f"{found.where}: {found.module}"
        for path in core_modules()
        for found in imports(path)
        if foreign(found) not in allowed
    ]
    assert not wrong, wrong


def test_what_only_some_parts_need_is_imported_there() -> None:
    wrong = [
        f"{found.where}: {found.module}"
        for path in core_modules()
        for found in imports(path)
        if (homes := ON_DEMAND.get(foreign(found) or ""))
        and (
            path.relative_to(CORE).parts[0] not in homes
            or (found.eager and "testing" not in path.parts and path.name not in LATE)
        )
    ]
    assert not wrong, wrong


def test_what_is_imported_on_demand_is_not_imported_otherwise() -> None:
    wrong = [
        f"{found.where}: {found.module}.{found.name}"
        for path in core_modules()
        for found in imports(path)
        if found.eager and {f"{found.name}.py", f"{found.module.rpartition('.')[2]}.py"} & LATE
    ]
    assert not wrong, wrong


def test_no_part_of_the_core_asks_which_broker_it_is() -> None:
    """No identifier, and no string that could be compared with a name. Prose may give a broker as an example."""
    wrong = [
        f"{place(path, node)}: {text!r}"
        for path in core_modules(without=tuple(NAMES_BROKERS))
        for node, text in names_and_strings(path)
        if BROKERS.fullmatch(text)
    ]
    assert not wrong, wrong


def names_and_strings(path: Path) -> list[tuple[ast.AST, str]]:
    """Every identifier and string of a module that is no docstring."""
    found: list[tuple[ast.AST, str]] = []
    prose = {
        id(node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found.append((node, node.value))
        elif isinstance(node, ast.Name):
            found.append((node, node.id))
        elif isinstance(node, ast.Attribute):
            found.append((node, node.attr))
    return found


def test_only_two_modules_of_the_core_know_an_event_loop() -> None:
    wrong = [
        f"{found.where}: {found.module}"
        for path in core_modules(without=("testing",))
        for found in imports(path)
        if found.module.partition(".")[0] in ("asyncio", "trio", "uvloop") and dotted(path) not in LOOPS
    ]
    assert not wrong, wrong


def test_only_the_lifecycle_starts_things_that_outlive_a_call() -> None:
    starters = re.compile(r"(create_task|ensure_future|spawn_system_task)$")
    wrong = [
        f"{place(path, call)}: {name}"
        for path in core_modules(without=("testing",))
        for name, call in calls(path)
        if starters.search(name) and dotted(path) not in LOOPS
    ]
    assert not wrong, wrong


def test_the_memory_broker_has_no_private_door() -> None:
    """It uses of the core what any backend may."""
    own = {
        dotted(path) for path in core_modules() if path.parent == CORE and path.name.startswith(("memory", "_memory"))
    }
    wrong = [
        f"{found.where}: {found.module} {found.name}"
        for path in core_modules()
        if dotted(path) in own
        for found in imports(path)
        if found.module.partition(".")[0] == "amb_core"
        and found.module not in PUBLIC | own
        and f"{found.module}.{found.name}" not in PUBLIC | own
    ]
    assert not wrong, wrong


def test_the_adapters_are_lazy() -> None:
    """A documented import path costs nothing until the class is asked for."""
    wrong = [
        f"{found.where}: {found.module}"
        for path in modules(CORE / "adapters")
        for found in imports(path)
        if found.eager and foreign(found) == "amb_core" and found.module not in {"amb_core.adapters", "amb_core.errors"}
    ]
    assert not wrong, wrong


def test_the_kernel_uses_public_names_only() -> None:
    """What `amb_core` itself offers, and the modules that every backend may use."""
    offered = {f"amb_core.{name}" for name in amb_core.__all__}
    wrong = [
        f"{found.where}: {found.module} {found.name}"
        for path in modules(KERNEL.parent)
        for found in imports(path)
        if found.module.partition(".")[0] == "amb_core"
        and found.name not in ("*", "__all__", "")
        and f"{found.module}.{found.name}" not in PUBLIC | offered | {"amb_core.adapters"}
        and (found.module not in PUBLIC or found.name.startswith("_"))
    ]
    assert not wrong, wrong


def test_the_kernel_reads_no_private_attribute_of_anybody() -> None:
    """Its own objects' apart: what it needs of the bus, the bus offers."""
    wrong = [
        f"{place(path, node)}: {ast.unparse(node)}"
        for path in modules(KERNEL)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if ast.unparse(node.value) != "self"
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", [CORE, *BACKENDS], ids=lambda package: package.name)
def test_nothing_that_the_kernel_is_built_on_knows_it(package: Path) -> None:
    wrong = [
        found.where
        for path in modules(package)
        for found in imports(path)
        if found.module.partition(".")[0] in ("amb_kernel", "agent_os")
    ]
    assert not wrong, wrong


def test_the_bus_runs_without_the_kernel() -> None:
    """Nothing that a bus does loads it."""
    code = """
import anyio, sys
from amb_core import MessageBus
async def main():
    async with MessageBus("memory") as bus:
        await bus.publish("a", 1)
anyio.run(main)
print([name for name in sys.modules if name.partition(".")[0] in ("amb_kernel", "agent_os")])
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
