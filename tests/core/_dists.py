"""Distributions that a test installs for itself: real files on ``sys.path``, found the way installed ones are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import amb_core._plugins
import pytest

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
    """A folder of installed distributions, and a registry that has not looked at anything yet."""

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

    def loaded(self) -> set[str]:
        """The modules of this folder that have been imported."""
        return {name for name in self.modules() if name in sys.modules}

    def modules(self) -> set[str]:
        """The modules of this folder."""
        return {path.stem for path in self._folder.glob("*.py")}


@contextmanager
def dists(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Dists]:
    """`folder` on the path, with a fresh registry; afterwards nothing of it is left."""
    made = Dists(folder)
    patch.syspath_prepend(str(folder))
    patch.setattr(amb_core._plugins, "_registry", None)
    try:
        yield made
    finally:
        for name in made.modules():
            sys.modules.pop(name, None)
