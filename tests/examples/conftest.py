"""Examples as modules of their own, and a Redis where nobody else is."""

from __future__ import annotations

import importlib.util
import secrets
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.docs._page import ROOT
from tests.servers.redis import RedisServer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads a fresh copy of an example: each has a bus that belongs to its module."""

    def load(name: str) -> ModuleType:
        monkeypatch.delenv("AMB_BROKER", raising=False)
        spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "docs" / "examples" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def redis(redis_server: RedisServer) -> dict[str, str]:
    """The variables that lead an example to it."""
    return on(redis_server)


def on(server: RedisServer) -> dict[str, str]:
    """As `redis`, for any server."""
    return {"AMB_BROKER": "redis", "AMB_REDIS_URL": server.url, "AMB_REDIS_PREFIX": f"t{secrets.token_hex(4)}"}
