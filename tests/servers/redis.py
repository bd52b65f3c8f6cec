"""Redis, alone, with TLS and users, and as a cluster of three."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import redis
import trustme

from .process import Server, free_ports, program, running

_PACKAGE = "redis-server"


class RedisServer(msgspec.Struct, frozen=True):
    """A server, and where it is. `process` is None for one that somebody else runs."""

    url: str
    host: str
    port: int
    process: Server | None = None


class SecureRedis(msgspec.Struct, frozen=True):
    """A server that speaks TLS only and asks for a name and a password."""

    host: str
    port: int
    #: The file of the authority that signed the server's certificate, and the client's own pair.
    ca: str
    certificate: str
    key: str
    #: May do everything.
    username: str = "amb"
    password: str = "correct-horse"
    #: May use only keys and channels whose names contain ``public``.
    limited_username: str = "limited"
    limited_password: str = "battery-staple"


class RedisCluster(msgspec.Struct, frozen=True):
    """Three masters that share the slots."""

    nodes: tuple[tuple[str, int], ...]
    processes: tuple[Server, ...]


@contextmanager
def alone(url: str | None = None) -> Iterator[RedisServer]:
    """One server; the one at `url` if there is a url."""
    if url:
        options = redis.connection.parse_url(url)
        yield RedisServer(url, options.get("host", "localhost"), options.get("port", 6379))
        return
    with _folder() as folder:
        (port,) = free_ports(1)
        server = _server(folder, port, "--appendonly", "yes", "--appendfsync", "always")
        with running(server):
            yield RedisServer(f"redis://127.0.0.1:{port}/0", "127.0.0.1", port, server)


@contextmanager
def secure() -> Iterator[SecureRedis]:
    """One server with TLS and users."""
    with _folder() as folder:
        (port,) = free_ports(1)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        for name in ("server", "client"):
            pair = authority.issue_cert("127.0.0.1", "localhost")
            pair.private_key_pem.write_to_path(str(folder / f"{name}.key"))
            for blob in pair.cert_chain_pems:
                blob.write_to_path(str(folder / f"{name}.pem"), append=True)
        reached = SecureRedis(
            "127.0.0.1", port, str(folder / "ca.pem"), str(folder / "client.pem"), str(folder / "client.key")
        )
        (folder / "users.acl").write_text(
            "user default off\n"
            f"user {reached.username} on >{reached.password} ~* &* +@all\n"
            f"user {reached.limited_username} on >{reached.limited_password} ~*public* &*public* +@all -@dangerous\n"
        )
        options = ["--tls-port", str(port), "--aclfile", str(folder / "users.acl"), "--tls-auth-clients", "optional"]
        for option, file in (("cert", "server.pem"), ("key", "server.key"), ("ca-cert", "ca.pem")):
            options += [f"--tls-{option}-file", str(folder / file)]
        client = redis.Redis(
            host="127.0.0.1", port=port, ssl=True, ssl_ca_certs=reached.ca,
            username=reached.username, password=reached.password,
        )  # fmt: skip
        with running(_server(folder, 0, *options, client=client)):
            yield reached


@contextmanager
def cluster() -> Iterator[RedisCluster]:
    """Three masters."""
    with ExitStack() as stack:
        ports = free_ports(3)
        servers = []
        for port in ports:
            folder = stack.enter_context(_folder())
            servers.append(_server(folder, port, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"))
        stack.enter_context(running(*servers))
        _join(ports)
        yield RedisCluster(tuple(("127.0.0.1", port) for port in ports), tuple(servers))


def _join(ports: list[int]) -> None:
    """Give each node its third of the slots, and wait until each knows that the others have theirs."""
    clients = [redis.Redis(port=port) for port in ports]
    edges = [0, 5461, 10923, 16384]
    for index, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", edges[index], edges[index + 1] - 1)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        if index:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
    for client in clients:
        _until_joined(client)
        client.close()


def _until_joined(client: redis.Redis) -> None:
    import time

    deadline = time.monotonic() + 20
    while True:
        info = client.execute_command("CLUSTER", "INFO")
        text = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
        if text["cluster_state"] == "ok" and text["cluster_known_nodes"] == "3":
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the Redis cluster does not come together: {text}")
        time.sleep(0.05)


def _server(folder: Path, port: int, *options: str, client: redis.Redis | None = None) -> Server:
    command = [program("redis-server", _PACKAGE), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    client = client or redis.Redis(port=port, socket_timeout=1)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    return Server([*command, "--save", "", *options], folder, answers)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="amb-redis-") as name:
        yield Path(name)
