"""A small repository with everything that agents stumble over, and brokers that the agents' processes find."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers.redis import RedisServer

#: What is in `repository`: files, commits, and what cannot be worked on.
FILES, COMMITS = 64, 4
DEAD = {"file broken.py", "file picture.png", "commit 'First of all'"}


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 sound files, one too big for a quick look, one that is no Python, one that is no text; a merge; commits
    for one reviewer and for the panel."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q", "-b", "main")
    for number in range(60):
        (folder / f"module_{number}.py").write_text(f"def f{number}():\n    return {number}\n" * 8)
    commit(folder, "First of all")
    (folder / "long.py").write_text("x = 1  # and so on\n" * 2000)
    (folder / "broken.py").write_text("def f(:\n")
    commit(folder, "A long file and a broken one")
    git(folder, "checkout", "-q", "-b", "side", "HEAD^")
    (folder / "picture.png").write_bytes(bytes(range(256)))
    (folder / "settings.json").write_text(json.dumps(list(range(90)), indent=1))
    commit(folder, "Pictures")
    git(folder, "checkout", "-q", "main")
    git(folder, "merge", "-q", "--no-ff", "-m", "Both together", "side")
    return folder


def commit(folder: Path, subject: str) -> None:
    """Commit everything there is."""
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", subject)


def git(folder: Path, *arguments: str) -> None:
    """git, as nobody in particular."""
    who = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def redis(redis_server: RedisServer) -> dict[str, str]:
    """The variables that lead the demo to a Redis where nobody else is."""
    return {"AMB_BROKER": "redis", "AMB_REDIS_URL": redis_server.url, "AMB_REDIS_PREFIX": _own_name()}


@pytest.fixture(params=["azure", "kafka", "nats", "nats-jetstream", "rabbitmq", "redis", "sqs"])
def elsewhere(request: pytest.FixtureRequest) -> dict[str, str]:
    """The variables that lead the demo to each broker with a server."""
    name = str(request.param)
    fixture, variables = _SERVERS[name]
    found = {"AMB_BROKER": name.partition("-")[0], **variables(request.getfixturevalue(fixture))}
    return {variable: _own_name() if value is OWN else value for variable, value in found.items()}


OWN = "a name that nobody else uses"


def _own_name() -> str:
    return f"demo-{secrets.token_hex(4)}"


_SERVERS: dict[str, tuple[str, Callable[[Any], dict[str, str]]]] = {
    "azure": ("servicebus", lambda bus: {
        "AMB_AZURE_CONNECTION_STRING": bus.connection_string, "AMB_AZURE_TOPIC_NAME": OWN,
        "AMB_AZURE_SSL_CA_CERTS": bus.ca,
    }),
    "kafka": ("kafka_server", lambda kafka: {"AMB_KAFKA_BROKERS": kafka.address}),
    "nats": ("nats_server", lambda nats: {"AMB_NATS_URL": nats.url, "AMB_NATS_SUBJECT_PREFIX": OWN}),
    "nats-jetstream": ("nats_server", lambda nats: {
        "AMB_NATS_URL": nats.url, "AMB_NATS_JETSTREAM": "true",
        "AMB_NATS_STREAM_NAME": OWN, "AMB_NATS_SUBJECT_PREFIX": OWN,
    }),
    "rabbitmq": ("rabbitmq_server", lambda rabbit: {"AMB_RABBITMQ_URL": rabbit.url, "AMB_RABBITMQ_EXCHANGE": OWN}),
    "redis": ("redis_server", lambda redis: {"AMB_REDIS_URL": redis.url, "AMB_REDIS_PREFIX": OWN}),
    "sqs": ("sqs_server", lambda sqs: {
        "AMB_SQS_ENDPOINT_URL": sqs.url, "AMB_SQS_REGION": "us-east-1", "AMB_SQS_QUEUE_PREFIX": OWN,
        "AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "test-secret",
    }),
}  # fmt: skip
