"""Distributions that a test installs for itself: real files on ``sys.path``, found the way installed ones are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import amb_core._plugins
import pytest
from amb_core._registry import Registry

#: A plugin module that registers one broker, under the name that is put in for NAME.
BROKER = '''
from __future__ import annotations
from contextlib import AbstractAsyncContextManager
import msgspec
from amb_core.broker import Capabilities, Connection
from amb_core.config import Secret, masked_repr, validate
from amb_core.hookspecs import BrokerRegister, hookimpl

class AcmeBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of every kind."""

    url: str = "acme://localhost"
    password: Secret | None = None
    pool_size: int = 4
    durable: bool = True
    nodes: list[str] = []

    def __post_init__(self) -> None:
        validate(self)

    def __repr__(self) -> str:
        return masked_repr(self)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(durable=self.durable)

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        raise NotImplementedError

@hookimpl
def amb_register_brokers(register: BrokerRegister) -> None:
    register("NAME", AcmeBroker, schemes=("NAME", "NAMEs"), env={"url": "ACME_ADDRESS"})
'''


class Dists:
    """A folder of installed distributions, and a registry that knows nothing else and has not looked yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def install(self, dist: str, points: Mapping[str, str], modules: Mapping[str, str]) -> None:
        """Install `dist` with these entry points (name: module) and modules (name: source)."""
        info = self._folder / f"{dist.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        lines = [f"{name} = {module}" for name, module in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[amb]", *lines, ""]))
        for module, source in modules.items():
            (self._folder / f"{module}.py").write_text(source)

    def points(self) -> list[EntryPoint]:
        """The entry points of this folder's distributions."""
        found = distributions(path=[str(self._folder)])
        return [point for dist in found for point in dist.entry_points if point.group == "amb"]

    def loaded(self) -> set[str]:
        """The modules of this folder that have been imported."""
        return {name for name in self.modules() if name in sys.modules}

    def modules(self) -> set[str]:
        """The modules of this folder."""
        return {path.stem for path in self._folder.glob("*.py")}


class _Without:
    """Finds modules as if one package were not installed."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def forget(package: str, patch: pytest.MonkeyPatch) -> None:
    """Until the test ends, the package has not been imported."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        patch.delitem(sys.modules, name)


def uninstall(package: str, patch: pytest.MonkeyPatch) -> None:
    """Until the test ends, the package cannot be imported."""
    forget(package, patch)
    patch.setattr(sys, "meta_path", [_Without(package), *sys.meta_path])


@contextmanager
def dists(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Dists]:
    """`folder` on the path, with a fresh registry; afterwards nothing of it is left."""
    made = Dists(folder)
    patch.syspath_prepend(str(folder))
    patch.setattr(amb_core._plugins, "_registry", Registry(find=made.points))
    try:
        yield made
    finally:
        for name in made.modules():
            sys.modules.pop(name, None)
