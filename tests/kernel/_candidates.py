"""Processes that run for a leadership on a real server, and what they believed when."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import sqs

from ._help import eventually

__all__ = ["BROKERS", "TTL", "Candidates", "running", "settings_on"]

TTL = 1.0
Belief = tuple[float, int, str]


class Candidates:
    """Processes of `candidate`, and what they believed when."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        with (self._folder / name).open("wb") as out:
            command = [sys.executable, "-m", "tests.kernel.candidate", name, str(TTL)]
            self.processes[name] = subprocess.Popen(command, stdout=out, env=self._environment)

    def send(self, name: str, what: signal.Signals) -> None:
        self.processes[name].send_signal(what)

    def beliefs(self) -> list[Belief]:
        """Every moment at which somebody believed to lead, the token and who."""
        found: list[Belief] = []
        for name in self.processes:
            lines = (self._folder / name).read_text().split("\n")[:-1]
            found += [(float(moment), int(token), name) for moment, token in map(str.split, lines)]
        return sorted(found)

    @property
    def leader(self) -> str | None:
        """Who believed last."""
        beliefs = self.beliefs()
        return beliefs[-1][2] if beliefs else None

    async def follows(self, leader: str) -> None:
        """Return when somebody else leads: after the rest of the term, and the candidates' pace."""
        await eventually(lambda: self.leader != leader, f"a successor of {leader}", 20)

    def check(self) -> list[int]:
        """The tokens, in order. Raises: AssertionError where two believed to lead at once."""
        beliefs, tokens = self.beliefs(), list[int]()
        for moment, token, name in beliefs:
            if not tokens or token != tokens[-1]:
                assert not tokens or token > tokens[-1], f"{name} at {moment}: {token} after {tokens[-1]}"
                tokens.append(token)
        return tokens


@contextmanager
def running(settings: dict[str, str], folder: Path) -> Iterator[Candidates]:
    """None yet; those that are started end with the context."""
    made = Candidates(folder, os.environ | settings)
    try:
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
            process.wait()


def _redis(server: Any, own: str) -> dict[str, str]:
    return {"URL": server.url, "PREFIX": own}


def _nats(server: Any, own: str) -> dict[str, str]:
    return {"URL": server.url, "JETSTREAM": "true", "STREAM_NAME": own, "SUBJECT_PREFIX": own}


def _rabbitmq(server: Any, own: str) -> dict[str, str]:
    return {"URL": server.url, "EXCHANGE": own}


def _kafka(server: Any, own: str) -> dict[str, str]:
    return {"BROKERS": server.address}


def _sqs(server: Any, own: str) -> dict[str, str]:
    access = {"AWS_ACCESS_KEY_ID": sqs.KEY, "AWS_SECRET_ACCESS_KEY": sqs.SECRET}
    return {"ENDPOINT_URL": server.url, "QUEUE_PREFIX": f"{own}-", "WAIT_TIME_SECONDS": "1", **access}


def _azure(server: Any, own: str) -> dict[str, str]:
    return {"CONNECTION_STRING": server.connection_string, "TOPIC_NAME": own, "SSL_CA_CERTS": server.ca}


#: By name: the fixture of the common server (with ``own_`` before it, of one's own), and the options.
BROKERS: dict[str, tuple[str, Callable[[Any, str], dict[str, str]]]] = {
    "redis": ("redis_server", _redis),
    "nats": ("nats_server", _nats),
    "rabbitmq": ("rabbitmq_server", _rabbitmq),
    "kafka": ("kafka_server", _kafka),
    "sqs": ("sqs_server", _sqs),
    "azure": ("servicebus", _azure),
}


def settings_on(broker: str, server: Any) -> dict[str, str]:
    """The variables that put a bus on the server, apart from others."""
    options = BROKERS[broker][1](server, f"e{secrets.token_hex(4)}")
    return {"AMB_BROKER": broker} | {f"AMB_{broker}_{name}".upper(): value for name, value in options.items()}
