"""The page of ``agent_os.amb`` (requirement text 000): the NATS backend, on a real NATS server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nats
import pytest
from amb_core import MessageBus
from amb_core.errors import ConfigurationError

from tests.core._help import Collector
from tests.servers import nats as servers
from tests.servers.nats import NatsServer, SecureNats

from ._run import run

pytestmark = pytest.mark.asyncio

NATS_BASIC = """
from agent_os.amb import MessageBus, NatsBroker

# Basic NATS configuration
bus = MessageBus(
    broker="nats",
    broker_url="nats://localhost:4222"
)
"""

NATS_ADVANCED = """
from agent_os.amb import MessageBus, NatsBroker # added

# Advanced NATS configuration with JetStream persistence
bus = MessageBus(
    broker=NatsBroker(
        servers=["nats://nats1:4222", "nats://nats2:4222"],
        name="agent-os-client",
        # JetStream for persistence
        jetstream=True,
        stream_name="AGENTS",
        stream_subjects=["agents.>"],
        stream_retention="limits", # "limits", "interest", or "workqueue"
        stream_max_msgs=1000000,
        # Security
        user="user",
        password="password",
        # Or use token
        token="secret-token",
        # Or use NKey
        nkeys_seed="SUACSSL3..."
    )
)
"""

NATS_TLS = """
from agent_os.amb import MessageBus, NatsBroker # added

# NATS with TLS
bus = MessageBus(
    broker=NatsBroker(
        servers=["tls://nats:4222"],
        tls_cert="/path/to/cert.pem",
        tls_key="/path/to/key.pem",
        tls_ca="/path/to/ca.pem"
    )
)
"""


async def carries(bus: MessageBus, topic: str) -> None:
    collector = Collector()
    async with bus:
        await bus.subscribe(topic, collector)
        await bus.publish(topic, {"n": 1})
        await collector.wait()
    assert collector.data == [{"n": 1}]


async def test_basic_nats_configuration(nats_server: NatsServer) -> None:
    names = await run(NATS_BASIC, {}, {"nats://localhost:4222": nats_server.url})
    await carries(names["bus"], "basic.nats")


#: The three ways of signing in, of which the page says "or": what the server knows, and the lines that belong to it.
SECURITY: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "user": ({"user": "user", "password": "password"}, ("user=", "password=")),
    "token": ({"token": "secret-token"}, ("token=",)),
    "nkey": ({"users": [{"nkey": servers.PUBLIC}]}, ("nkeys_seed=",)),
}


@pytest.mark.parametrize("way", SECURITY)
async def test_advanced_nats_configuration_with_a_stream_of_its_own(way: str) -> None:
    """With one of the three ways of signing in. Of the two servers, one is up."""
    authorization, kept = SECURITY[way]
    others = [line for each, (_, lines) in SECURITY.items() if each != way for line in lines]
    text = "\n".join(line for line in NATS_ADVANCED.splitlines() if not line.strip().startswith(tuple(others)))
    assert all(line in text for line in kept)
    with servers.alone(authorization=authorization) as server:
        theirs = {
            "nats://nats1:4222": server.url,
            "nats://nats2:4222": "nats://127.0.0.1:1",
            "SUACSSL3...": servers.SEED,
        }
        await carries((await run(text, {}, theirs))["bus"], "agents.worker.status")
        async with (await run(text, {}, theirs))["bus"] as bus:
            assert [message.data async for message in bus.replay("agents.worker.status")] == [{"n": 1}]
        login: dict[str, Any] = {"user": {"user": "user", "password": "password"}, "token": {"token": "secret-token"},
                                 "nkey": {"nkeys_seed_str": servers.SEED}}  # fmt: skip
        native = await nats.connect(server.url, **login[way])
        stream = (await native.jetstream().stream_info("AGENTS")).config
        await native.close()
    assert (stream.subjects, stream.retention, stream.max_msgs) == (["agents.>"], "limits", 1000000)


async def test_all_three_ways_of_signing_in_at_once_are_built_and_the_seed_is_the_one_that_counts() -> None:
    bus = (await run(NATS_ADVANCED, {}))["bus"]
    assert "secret-token" not in repr(bus.broker) and "SUACSSL3" not in repr(bus.broker)
    with pytest.raises(ConfigurationError, match="nkeys_seed"):
        await bus.connect()


async def test_nats_with_tls(secure_nats: SecureNats) -> None:
    login = f"{secure_nats.user}:{secure_nats.password}@"
    theirs = {
        "tls://nats:4222": secure_nats.url.replace("://", f"://{login}"), "/path/to/cert.pem": secure_nats.certificate,
        "/path/to/key.pem": secure_nats.key, "/path/to/ca.pem": secure_nats.ca,
    }  # fmt: skip
    await carries((await run(NATS_TLS, {}, theirs))["bus"], "tls.open.nats")
