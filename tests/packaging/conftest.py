"""The distributions as users get them: built once per run, installed into environments of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import build


@pytest.fixture(scope="session")
def dists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of every distribution."""
    folder = tmp_path_factory.mktemp("dists")
    for member in build.folders():
        build.build(member, folder)
    return folder


@pytest.fixture(scope="session")
def environment(dists: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., build.Environment]:
    """Makes a clean environment with the given requirements, from our files and PyPI."""

    def make(*requirements: str) -> build.Environment:
        return build.Environment(tmp_path_factory.mktemp("env") / "env", dists).install(*requirements)

    return make


@pytest.fixture(scope="session")
def core_only(environment: Callable[..., build.Environment]) -> build.Environment:
    """Nothing but ``pip install amb-core``."""
    return environment("amb-core")
