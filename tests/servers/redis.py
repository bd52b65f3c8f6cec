"""Redis, alone, with TLS and users, and as a cluster of three."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
    #: The Unix socket on which it listens too, if it is ours.
    socket: str = ""


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


class RedisSentinel(msgspec.Struct, frozen=True):
    """A master and its replica, watched by a Sentinel under the name ``mymaster``."""

    address: tuple[str, int]
    master: tuple[str, int]
    replica: tuple[str, int]
    master_process: Server
    replica_process: Server


class RedisCluster(msgspec.Struct, frozen=True):
    """Three masters that share the slots."""

    nodes: tuple[tuple[str, int], ...]
    processes: tuple[Server, ...]


@contextmanager
def alone(url: str | None = None) -> Iterator[RedisServer]:
    """One server; the one at `url` if there is a url."""
    if url:
        options = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
        yield RedisServer(url, options.get("host", "localhost"), options.get("port", 6379))
        return
    with _folder() as folder:
        (port,) = free_ports(1)
        socket = str(folder / "redis.sock")
        server = _server(folder, port, "--appendonly", "yes", "--appendfsync", "always", "--unixsocket", socket)
        with running(server):
            yield RedisServer(f"redis://127.0.0.1:{port}/0", "127.0.0.1", port, server, socket)


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
def sentinel() -> Iterator[RedisSentinel]:
    """A master, its replica, and one Sentinel that lets the replica take over after a second of silence."""
    with ExitStack() as stack:
        ports = free_ports(3)
        folders = [stack.enter_context(_folder()) for _ in ports]
        master = _server(folders[0], ports[0])
        replica = _server(folders[1], ports[1], "--replicaof", "127.0.0.1", str(ports[0]))
        (folders[2] / "sentinel.conf").write_text(
            f"bind 127.0.0.1\nport {ports[2]}\ndir {folders[2]}\n"
            f"sentinel monitor mymaster 127.0.0.1 {ports[0]} 1\n"
            "sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 5000\n"
        )
        stack.enter_context(running(master, replica))
        _until_replicating(ports[1])
        watcher = _server(folders[2], ports[2], command=("sentinel.conf", "--sentinel"))
        stack.enter_context(running(watcher))
        _until_watching(ports[2])
        yield RedisSentinel(("127.0.0.1", ports[2]), ("127.0.0.1", ports[0]), ("127.0.0.1", ports[1]), master, replica)


def _until_replicating(port: int) -> None:
    with redis.Redis(port=port) as client:
        _until(lambda: client.info("replication")["master_link_status"] == "up", "the replica does not follow")


def _until_watching(port: int) -> None:
    with redis.Redis(port=port) as client:
        _until(lambda: client.sentinel_master("mymaster")["num-slaves"] == 1, "the Sentinel does not know the replica")


def _until(done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 20
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.05)


@contextmanager
def cluster() -> Iterator[RedisCluster]:
    """Three masters."""
    with ExitStack() as stack:
        ports = free_ports(3)
        servers = []
        for port in ports:
            folder = stack.enter_context(_folder())
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
            servers.append(_server(folder, port, *options, "--appendonly", "yes", "--appendfsync", "always"))
        stack.enter_context(running(*servers))
        _join(ports)
        yield RedisCluster(tuple(("127.0.0.1", port) for port in ports), tuple(servers))


def _join(ports: list[int]) -> None:
    """Give each node its third of the slots, and wait until each knows that the others have theirs."""
    clients = [redis.Redis(port=port) for port in ports]
    edges = [0, 5461, 10923, 16384]
    for index, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", edges[index], edges[index + 1] - 1)  # type: ignore[no-untyped-call]
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)  # type: ignore[no-untyped-call]
        if index:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])  # type: ignore[no-untyped-call]
        client.close()
    until_joined(ports)


def until_joined(ports: Sequence[int]) -> None:
    """Return when each node knows that the others have their slots. Raises: RuntimeError after 20 s."""
    for port in ports:
        with redis.Redis(port=port) as client:
            _until_joined(client)


def _until_joined(client: redis.Redis) -> None:
    def joined() -> bool:
        info = client.execute_command("CLUSTER", "INFO")  # type: ignore[no-untyped-call]
        text = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
        return bool(text["cluster_state"] == "ok" and text["cluster_known_nodes"] == "3")

    _until(joined, "the Redis cluster does not come together")


def _server(
    folder: Path,
    port: int,
    *options: str,
    client: redis.Redis | None = None,
    command: tuple[str, ...] = (),
) -> Server:
    command = command or ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "", *options)
    client = client or redis.Redis(port=port, socket_timeout=1)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    return Server([program("redis-server", _PACKAGE), *command], folder, answers)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="amb-redis-") as name:
        yield Path(name)
