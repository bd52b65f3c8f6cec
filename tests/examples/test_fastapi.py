"""The web application: under uvicorn, alone and on Redis; and each error of the bus as HTTP's."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx
import pytest
from amb_core import MessageBus
from amb_redis import RedisBroker

from tests.cli._amb import Running, started
from tests.core._help import Collector
from tests.docs._page import ROOT
from tests.servers.process import free_ports
from tests.servers.redis import RedisServer

from .conftest import on

pytestmark = pytest.mark.anyio
TEA = {"item": "tea", "quantity": 2}
Load = Callable[[str], ModuleType]


@contextmanager
def served(log: Path, env: dict[str, str]) -> Iterator[tuple[httpx.Client, Running]]:
    """The application in a process of its own."""
    [port] = free_ports(1)
    arguments = ("docs.examples.fastapi_app:app", "--port", str(port))
    with started(*arguments, log=log, env=env | {"PYTHONWARNINGS": "error"}, cwd=ROOT, module="uvicorn") as process:
        process.until("Uvicorn running on")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            yield client, process


def ended(process: Running) -> str:
    """Ask it to end; all that it printed."""
    code, _ = process.end(signal.SIGTERM)
    assert process.process.stdout is not None
    assert code in (0, -signal.SIGTERM), process.said  # uvicorn ends by the signal that it has got
    assert "Application shutdown complete" in process.said and "Traceback" not in process.said, process.said
    return process.process.stdout.read()


def test_it_works_alone_and_finishes_what_it_began(tmp_path: Path) -> None:
    with served(tmp_path / "log", {}) as (client, process):
        assert client.get("/prices/tea").json() == 3.5
        assert client.get("/health").json() == {"status": "healthy"}
        answer = client.post("/orders", json=TEA)
        assert "packed 2 x tea" in ended(process)
    assert answer.status_code == 202 and answer.json()["id"]


async def test_on_redis_others_hear_of_orders_and_ask_for_prices(redis: dict[str, str], tmp_path: Path) -> None:
    collector = Collector()
    with served(tmp_path / "log", redis) as (client, process):
        broker = RedisBroker(redis["AMB_REDIS_URL"], prefix=redis["AMB_REDIS_PREFIX"])
        async with MessageBus(broker) as bus:
            await bus.subscribe("shop.orders", collector, group="auditors")
            answer = await anyio.to_thread.run_sync(lambda: client.post("/orders", json=TEA))
            [order] = await collector.wait()
            huge = await anyio.to_thread.run_sync(lambda: client.post("/orders", json={"item": "tea" * (1 << 23)}))
            assert (huge.status_code, huge.json()["error"]) == (413, "MessageTooLarge")
            assert (await bus.request("shop.prices", "coffee", timeout=20)).data == 4.0
        assert "packed 2 x tea" in await anyio.to_thread.run_sync(ended, process)
    assert (order.id, order.data, order.sender) == (answer.json()["id"], TEA, "shop")


def test_without_its_broker_it_says_so(own_redis_server: RedisServer, tmp_path: Path) -> None:
    with served(tmp_path / "log", on(own_redis_server)) as (client, _):
        assert own_redis_server.process is not None
        own_redis_server.process.stop()
        try:
            answer = client.post("/orders", json=TEA)
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"] in ("ConnectionLost", "PublishUnknown", "Unavailable")
            assert client.get("/health").status_code == 503
        finally:
            own_redis_server.process.start()


async def test_what_the_bus_raises_is_an_answer_of_http(example: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = example("fastapi_app")

    async def get(path: str) -> tuple[int, Any]:
        answer = await client.get(path)
        return answer.status_code, answer.json()["error"]

    transport = httpx.ASGITransport(shop.app)
    async with shop.lifespan(shop.app), httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        assert await get("/prices/gold") == (502, "RemoteError")
        await shop.bus.unsubscribe("shop.prices")
        assert await get("/prices/tea") == (503, "NoResponders")
        await shop.bus.subscribe("shop.prices", Collector())  # which gives no answer
        monkeypatch.setattr(shop, "PATIENCE", 0.1)
        assert await get("/prices/tea") == (504, "RequestTimeout")
        assert (await client.post("/orders", json={"quantity": 1})).status_code == 422
    assert not shop.bus.connected
