"""A client of AMQP 1.0 that has nothing to do with Azure: Qpid Proton, in the system's Python."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from tests.servers.azure import ServiceBus
from tests.servers.process import in_ci

pytestmark = pytest.mark.anyio
_PYTHON = "/usr/bin/python3"
_SCRIPT = Path(__file__).with_name("proton_client.py")
_MISSING = "Qpid Proton is not installed: apt-get install python3-qpid-proton"


@pytest.fixture(scope="module", autouse=True)
def proton() -> None:
    try:
        found = subprocess.run([_PYTHON, "-c", "import proton"], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        (pytest.fail if in_ci() else pytest.skip)(_MISSING)


@pytest.fixture(scope="module")
async def entity(admin: ServiceBusAdministrationClient, word: str) -> str:
    await admin.create_queue(f"{word}-proton")
    return f"{word}-proton"


def run(what: str, server: ServiceBus, entity: str) -> Any:
    command = [_PYTHON, str(_SCRIPT), what, f"amqp://{server.host}:{server.port}", entity]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_every_way_of_settling(servicebus: ServiceBus, entity: str) -> None:
    found = run("settle", servicebus, entity)
    number = found.pop("number")
    assert number > 0 and found == {
        "accepted": True, "counts": [0, 0, 1, 2], "same": True, "id": 42, "priority": 9, "ttl": 60, "subject": "s",
        "own": "kept",
    }  # fmt: skip


async def test_large_messages_in_small_frames(servicebus: ServiceBus, entity: str) -> None:
    assert run("large", servicebus, entity) == {"same": [True, True, True], "refused": True}


async def test_requests(servicebus: ServiceBus, entity: str) -> None:
    assert run("request", servicebus, entity) == [
        [1, 200, None], [2, 501, "amqp:not-implemented"], [3, 400, "com.microsoft:argument-error"],
    ]  # fmt: skip


async def test_rules(servicebus: ServiceBus, entity: str, admin: ServiceBusAdministrationClient) -> None:
    topic = f"{entity}-topic"
    await admin.create_topic(topic)
    await admin.create_subscription(topic, "s")
    statuses, rules = run("rules", servicebus, f"{topic}/Subscriptions/s")
    assert statuses == [200, 409, 200, 400, 200, 404, 200]
    assert rules == [["sql", 0x1370000006, ["a = 1"]], ["same", 0x1370000009, [None]]]


async def test_what_is_not_there(servicebus: ServiceBus, entity: str) -> None:
    assert run("refused", servicebus, entity) == ["amqp:not-found", "amqp:not-found"]


async def test_a_silent_connection_stays_open(servicebus: ServiceBus, entity: str) -> None:
    assert run("beat", servicebus, entity) >= 9
