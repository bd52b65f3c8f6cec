"""RabbitMQ: one node of its own, with TLS and users."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import trustme

from .process import MissingServer, Server, answers_on, free_ports, running

_HOME = Path("/usr/lib/rabbitmq/bin")
#: What a killed process has written is as safe in memory as on a disk, and nobody else's writing delays it there.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class RabbitServer(msgspec.Struct, frozen=True):
    """A node that speaks AMQP on one port and AMQP over TLS on another."""

    url: str
    host: str
    port: int
    tls_url: str
    ca: str
    process: RabbitNode


class RabbitNode(Server):
    """The Erlang machine of one node."""

    def __init__(self, folder: Path, port: int, environment: Mapping[str, str]) -> None:
        # The machine takes the place of `env`, and of the shell that starts it.
        settings = [f"{name}={value}" for name, value in environment.items()]
        super().__init__(["env", *settings, str(_HOME / "rabbitmq-server")], folder, lambda: _greets(port))
        self._environment = dict(environment)

    def ctl(self, *arguments: str) -> str:
        """What ``rabbitmqctl`` answers. Raises: RuntimeError."""
        done = subprocess.run(
            [str(_HOME / "rabbitmqctl"), "--quiet", *arguments],
            env=os.environ | self._environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments[0]}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return done.stdout


@contextmanager
def alone(config: Sequence[str] = (), *, expired: bool = False) -> Iterator[RabbitServer]:
    """One node; `config` is added to its configuration. `expired`: its certificate is no longer valid."""
    if not (_HOME / "rabbitmq-server").exists():
        raise MissingServer("rabbitmq-server is not installed: apt-get install rabbitmq-server")
    with tempfile.TemporaryDirectory(prefix="amb-rabbit-", dir=_MEMORY, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port, tls_port, distribution, mapper = free_ports(4)
        _certificates(folder, datetime.now(UTC) - timedelta(days=1) if expired else None)
        (folder / "rabbitmq.conf").write_text(
            "\n".join(
                [
                    f"listeners.ssl.1 = 127.0.0.1:{tls_port}",
                    f"ssl_options.cacertfile = {folder}/ca.pem",
                    f"ssl_options.certfile = {folder}/server.pem",
                    f"ssl_options.keyfile = {folder}/server.key",
                    # What a test machine has to spare is not the point here.
                    "disk_free_limit.absolute = 10MB",
                    *config,
                    "",
                ]
            )
        )
        (folder / "enabled_plugins").write_text("[].\n")
        # Erlang's port mapper, as a child of our own: one that a node starts outlives it. The node registers with it.
        command = ["epmd", "-address", "127.0.0.1", "-port", str(mapper)]
        names = Server(command, folder, lambda: answers_on(mapper))
        node = RabbitNode(folder, port, _environment(folder, port, distribution, mapper))
        try:
            with running(names), running(node):
                yield RabbitServer(
                    f"amqp://guest:guest@127.0.0.1:{port}/", "127.0.0.1", port,
                    f"amqps://guest:guest@127.0.0.1:{tls_port}/", str(folder / "ca.pem"), node,
                )  # fmt: skip
        finally:
            node.kill()


def _environment(folder: Path, port: int, distribution: int, mapper: int) -> dict[str, str]:
    return {
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(mapper),
        "RABBITMQ_NODENAME": f"amb{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
        "RABBITMQ_LOG_BASE": f"{folder}/logs",
        "RABBITMQ_PID_FILE": f"{folder}/pid",
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
        "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} -setcookie amb "
        "-start_epmd false -noinput",
        # Without it a shell stays between us and the machine, and swallows the signals.
        "RABBITMQ_ALLOW_INPUT": "true",
        "RABBITMQ_CTL_ERL_ARGS": "-setcookie amb",
        "HOME": str(folder),
    }


def _certificates(folder: Path, until: datetime | None) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    pair = authority.issue_cert("127.0.0.1", "localhost", not_after=until)
    pair.private_key_pem.write_to_path(str(folder / "server.key"))
    for blob in pair.cert_chain_pems:
        blob.write_to_path(str(folder / "server.pem"), append=True)


def _greets(port: int) -> bool:
    """Whether the node answers the protocol's header, as it does when it is ready for clients."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.settimeout(2)
            sock.sendall(b"AMQP\x00\x00\x09\x01")
            return sock.recv(1) == b"\x01"
    except OSError:
        return False
