"""Every durable backend in turn, on servers that the drills may hurt."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from amb_core.testing import Rig

from tests.conformance.backends import BACKENDS
from tests.servers.plugin import _provide

from ._size import Size, chosen
from ._stage import Stage

#: Nothing here survives what the drills do, or what is different is drilled elsewhere.
ELSEWHERE = {
    "memory": "ends with its process",
    "nats": "keeps nothing",
    "redis-pubsub": "keeps nothing",
    "redis-cluster": "is Redis Streams, with commands sent by key: see tests/redis/test_cluster.py",
}
#: Seconds, and what brokers call it. Every bound of a drill is a multiple of it.
LEASE, LEASES = 4, ("lease", "lock_duration", "visibility_timeout")
RESULTS = Path(__file__).parents[2] / "build" / "drills.json"
_measured: list[dict[str, Any]] = []


@pytest.fixture
def anyio_backend() -> str:
    """Network clients run on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="session")
def size() -> Size:
    """How much."""
    return chosen()


@pytest.fixture(scope="session", params=[name for name in BACKENDS if name not in ELSEWHERE])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A durable backend."""
    for rig in _provide(BACKENDS[request.param]()):
        capabilities = rig.make().capabilities
        assert capabilities.durable and capabilities.durable_groups, "it cannot be drilled: say why in ELSEWHERE"
        yield _leased(msgspec.structs.replace(rig, name=request.param))


def _leased(rig: Rig) -> Rig:
    """The rig with leases that a busy machine renews in time."""
    make, through = rig.make, rig.through

    def longer(broker: Any) -> Any:
        lease: dict[str, Any] = {name: LEASE for name in LEASES if hasattr(broker, name)}
        assert bool(lease) == (broker.capabilities.lease is not None)
        return msgspec.structs.replace(broker, **lease) if lease else broker

    return msgspec.structs.replace(
        rig,
        make=lambda: longer(make()),
        through=None if through is None else lambda host, port: longer(through(host, port)),
    )


@pytest.fixture
async def stage(rig: Rig, size: Size, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """The backend, for one drill."""
    measured: dict[str, Any] = {"backend": rig.name, "drill": request.node.originalname}
    began = time.monotonic()
    async with anyio.create_task_group() as host:
        stage = Stage(rig, size, host, measured)
        yield stage
        measured["seconds"] = round(time.monotonic() - began, 1)
        _measured.append(measured)
        stage.end()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, a line a drill."""
    if not _measured:
        return
    terminalreporter.section(f"drills, {os.environ.get('AMB_DRILLS') or 'small'} size")
    for line in _measured:
        facts = ", ".join(f"{name} {value}" for name, value in line.items() if name not in ("backend", "drill"))
        terminalreporter.write_line(f"{line['backend']:<15} {line['drill']}: {facts}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(_measured)) + b"\n")
