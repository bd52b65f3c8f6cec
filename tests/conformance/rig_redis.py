"""Redis for the conformance kit: as Streams, as pub/sub, and as a Cluster, each on servers of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio.to_thread
import msgspec
import redis as native
from amb_core.broker import Broker
from amb_core.testing import Rig
from amb_redis import RedisBroker

from tests.servers import redis as servers
from tests.servers.process import Server

__all__ = ["cluster", "pubsub", "streams"]

#: Seconds. Long enough that a busy machine extends leases in time, short enough to watch them run out.
LEASE = 2.0
ABSENT = {"strict": "a topic is made by its first message: there is none to be missing"}


class Power:
    """`amb_core.testing.Control` over server processes."""

    def __init__(self, processes: Sequence[Server], ready: Callable[[], None] = lambda: None) -> None:
        self._processes, self._ready = processes, ready

    async def stop(self) -> None:
        """See `Control.stop`."""
        await self._each(Server.stop)

    async def kill(self) -> None:
        """See `Control.kill`."""
        await self._each(Server.kill)

    async def start(self) -> None:
        """See `Control.start`."""
        await self._each(Server.start)
        await anyio.to_thread.run_sync(self._ready)

    def freeze(self) -> None:
        """See `Control.freeze`."""
        for process in self._processes:
            process.freeze()

    def thaw(self) -> None:
        """See `Control.thaw`."""
        for process in self._processes:
            process.thaw()

    async def _each(self, do: Callable[[Server], None]) -> None:
        for process in self._processes:
            await anyio.to_thread.run_sync(do, process)


@contextmanager
def streams() -> Iterator[Rig]:
    """Redis Streams on a server that writes everything to disk, and one with TLS and users."""
    with servers.alone() as server, servers.secure() as secure:
        yield from _rig("redis", server, secure, use_streams=True)


@contextmanager
def pubsub() -> Iterator[Rig]:
    """Plain pub/sub."""
    with servers.alone() as server, servers.secure() as secure:
        yield from _rig("redis-pubsub", server, secure, use_streams=False)


@contextmanager
def cluster() -> Iterator[Rig]:
    """Streams on three masters that share the slots."""
    with servers.cluster() as three:
        nodes = [f"redis://{host}:{port}" for host, port in three.nodes]
        broker = RedisBroker(cluster_nodes=nodes, lease=LEASE, response_timeout=4.0)
        clients = [native.Redis(port=port) for _, port in three.nodes]
        for client in clients:
            client.execute_command("ACL", "SETUSER", "known", "on", ">open")  # type: ignore[no-untyped-call]
            client.close()
        host, port = three.nodes[0]
        yield Rig(
            name="redis-cluster",
            make=lambda: broker,
            control=Power(three.processes, lambda: servers.until_joined([port for _, port in three.nodes])),
            impostor=lambda: msgspec.structs.replace(broker, username="known", password="wrong-secret"),
            restricted=lambda namespace: _restricted(clients, broker, namespace),
            capped=lambda cap: msgspec.structs.replace(broker, stream_max_len=cap),
            destroy=_destroyer(lambda: native.RedisCluster(host=host, port=port)),
            absent=ABSENT | {"proxy": "the nodes of a Cluster say themselves where they are, so a proxy is passed by"},
        )


def _rig(name: str, server: servers.RedisServer, secure: servers.SecureRedis, *, use_streams: bool) -> Iterator[Rig]:
    assert server.process is not None
    # A short patience: a frozen server must be noticed within a case.
    broker = RedisBroker(server.url, use_streams=use_streams, lease=LEASE, response_timeout=4.0)
    guarded = RedisBroker(
        f"rediss://{secure.host}:{secure.port}/0",
        username=secure.username, password="wrong-secret", ssl_ca_certs=secure.ca, use_streams=use_streams, lease=LEASE,
    )  # fmt: skip
    admin = native.Redis(
        host=secure.host, port=secure.port, ssl=True, ssl_ca_certs=secure.ca,
        username=secure.username, password=secure.password,
    )  # fmt: skip
    yield Rig(
        name=name,
        make=lambda: broker,
        control=Power([server.process]),
        address=(server.host, server.port),
        through=lambda host, port: msgspec.structs.replace(broker, url=f"redis://{host}:{port}/0"),
        impostor=lambda: guarded,
        restricted=lambda namespace: _restricted([admin], guarded, namespace),
        capped=(lambda cap: msgspec.structs.replace(broker, stream_max_len=cap)) if use_streams else None,
        destroy=_destroyer(lambda: native.Redis(port=server.port)) if use_streams else None,
        absent=ABSENT if use_streams else ABSENT | {"capped": "pub/sub keeps nothing that could be too much"},
    )


async def _restricted(admins: Sequence[native.Redis], broker: RedisBroker, namespace: str) -> Broker:
    rules = ["reset", "on", ">open", "+@all", "-@dangerous", "+cluster|slots", "+cluster|shards"]
    rules += ["~amb:{topics}*", f"~amb:{{{namespace}.open.*", f"&amb:ch:{namespace}.open.*", "&amb:in:*"]
    for admin in admins:
        admin.execute_command("ACL", "SETUSER", namespace, *rules)  # type: ignore[no-untyped-call]
        admin.close()
    return msgspec.structs.replace(broker, username=namespace, password="open")


def _destroyer(connect: Callable[[], native.Redis | native.RedisCluster]) -> Callable[[str], Awaitable[None]]:
    async def destroy(topic: str) -> None:
        client = connect()
        try:
            for key in client.scan_iter(f"amb:{{{topic}}}:*", count=1000):
                client.delete(key)
        finally:
            client.close()

    return destroy
