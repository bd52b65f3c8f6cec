"""Azure Service Bus: the emulator in `tests.servers.servicebus`, plain, or with TLS and keys on the cloud's port."""

from __future__ import annotations

import random
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import trustme

from .process import Server, free_ports, running
from .servicebus.auth import LISTEN, SEND, Key
from .servicebus.config import Config
from .servicebus.frames import AMQP_HEADER

_ROOT = Path(__file__).parents[2]
_AMQPS, _HTTPS = 5671, 443


class ServiceBus(msgspec.Struct, frozen=True):
    """A namespace without TLS and without keys, which the client calls the development emulator.

    AMQP, HTTP and HTTPS are spoken on one port, so the connection string is good for the administration client too if
    that trusts `ca` (``connection_verify=ca``).
    """

    connection_string: str
    host: str
    port: int
    #: The file of the authority that signed the server's certificate.
    ca: str
    process: Server


class SecureServiceBus(msgspec.Struct, frozen=True):
    """A namespace with TLS only on the ports of the cloud, and with keys."""

    connection_string: str
    #: With the right to send only, and to receive only.
    send_connection_string: str
    listen_connection_string: str
    #: With a key that is not right.
    wrong_connection_string: str
    #: A token that Azure AD could have made out, and that is accepted here.
    bearer: str
    host: str
    #: Whether the administration is on port 443, as in the cloud; it is on `admin_port` in any case.
    admin_port: int
    ca: str
    process: Server


@contextmanager
def alone(config: Config | None = None) -> Iterator[ServiceBus]:
    """A namespace that loses nothing at a restart, nor by SIGKILL; `config` has what it begins with."""
    with _folder() as folder:
        (port,) = free_ports(1)
        ca = _certificate(folder, "127.0.0.1", "localhost")
        process = _server(folder, "127.0.0.1", port, [], config or Config())
        with running(process):
            string = _string(f"127.0.0.1:{port}", "RootManageSharedAccessKey", "SAS_KEY_VALUE")
            yield ServiceBus(f"{string};UseDevelopmentEmulator=true", "127.0.0.1", port, ca, process)


@contextmanager
def secure(config: Config | None = None) -> Iterator[SecureServiceBus]:
    """A namespace with TLS and keys, on a loopback address of its own, as its port cannot be chosen."""
    host = f"127.{random.randint(16, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"
    key, bearer = "a-shared-access-key", "a-token-of-azure-ad"
    keys = (Key("root", key), Key("send", key, (SEND,)), Key("listen", key, (LISTEN,)))
    config = msgspec.structs.replace(config or Config(), keys=keys, bearers=(bearer,))
    with _folder() as folder:
        (admin,) = free_ports(1)
        ca = _certificate(folder, host)
        more = [str(admin), *([str(_HTTPS)] if _may_bind(host, _HTTPS) else [])]
        process = _server(folder, host, _AMQPS, more, config)
        with running(process):
            yield SecureServiceBus(
                _string(host, "root", key), _string(host, "send", key), _string(host, "listen", key),
                _string(host, "root", "wrong-key"), bearer, host, admin, ca, process,
            )  # fmt: skip


def _string(host: str, name: str, key: str) -> str:
    return f"Endpoint=sb://{host};SharedAccessKeyName={name};SharedAccessKey={key}"


def _certificate(folder: Path, *hosts: str) -> str:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert(*hosts).private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return str(folder / "ca.pem")


def _server(folder: Path, host: str, port: int, more: list[str], config: Config) -> Server:
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    command = [sys.executable, "-m", "tests.servers.servicebus", "--host", host, "--port", str(port)]
    command += [part for each in more for part in ("--port", each)]
    command += ["--config", str(folder / "config.json"), "--journal", str(folder / "journal")]
    command += ["--certificate", str(folder / "server.pem")]
    return Server(["env", f"PYTHONPATH={_ROOT}", *command], folder, lambda: _answers(host, port))


def _answers(host: str, port: int) -> bool:
    """Whether it answers the header of AMQP; without TLS that is so on every port."""
    try:
        with socket.create_connection((host, port), 1) as sock:
            sock.settimeout(1)
            sock.sendall(AMQP_HEADER)
            return sock.recv(8) == AMQP_HEADER
    except (OSError, struct.error):
        return False


def _may_bind(host: str, port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="amb-servicebus-") as name:
        yield Path(name)
