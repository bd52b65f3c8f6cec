"""Connections to the servers: redis-py's, used so that a read can be cancelled and taken up again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anyio
from amb_core.errors import AmbError, ConfigurationError, PublishUnknown, Unavailable
from hiredis import pack_command
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError, NoScriptError, ReadOnlyError, RedisError, ResponseError

from . import _scripts
from ._errors import NATIVE, translate

if TYPE_CHECKING:
    from .broker import RedisBroker

__all__ = ["Command", "Link", "Reply", "Servers", "checked", "servers"]

#: A command, and what the server says to it: errors are values here.
Command: TypeAlias = tuple[Any, ...]
Reply: TypeAlias = Any


def checked(reply: Reply, doing: str) -> Reply:
    """The reply, unless it is an error."""
    if isinstance(reply, Exception):
        raise translate(reply, doing)
    return reply


class Link:
    """One connection. Answers come in the order of the questions, also after a cancelled wait."""

    def __init__(self, native: AbstractConnection) -> None:
        self._native = native
        #: Answers that have not been read.
        self.owed = 0

    @property
    def alive(self) -> bool:
        return self._native.is_connected

    async def connect(self, seconds: float) -> None:
        """Connect and authenticate."""
        try:
            async with asyncio.timeout(seconds):
                await self._native.connect()
        except BaseException:
            await self.close()
            raise

    async def stale(self) -> bool:
        """Whether the server has hung up, or said something nobody asked for."""
        return not self.alive or await self._native.can_read()

    async def ask(self, commands: Sequence[Command]) -> None:
        """Write the commands; as many answers are owed then."""
        await self._native.send_packed_command([b"".join(map(pack_command, commands))])
        self.owed += len(commands)

    async def answer(self) -> Reply:
        """Wait for the next answer. May be cancelled, and called again."""
        try:
            reply = await self._native.read_response(timeout=math.inf, disconnect_on_error=False)
        except ResponseError as error:
            reply = error
        self.owed -= 1
        return reply

    async def more(self) -> bool:
        """Whether something has arrived that was not read."""
        return await self._native.can_read()

    async def close(self) -> None:
        """Hang up, without waiting for anything."""
        self.owed = 0
        await self._native.disconnect(nowait=True)


class _Node:
    """The pooled connections to one server."""

    def __init__(self, make: Callable[[], AbstractConnection], options: RedisBroker) -> None:
        self._make = make
        self._options = options
        self._free: list[Link] = []
        self._slots = anyio.Semaphore(options.pool_size, fast_acquire=True)

    async def link(self) -> Link:
        """A new connection that is the caller's own."""
        try:
            link = Link(self._make())
            await link.connect(self._options.connect_timeout)
        except AmbError:
            raise
        except NATIVE as error:
            raise translate(error, "connect to Redis") from error
        return link

    async def call(self, commands: Sequence[Command], doing: str, unknown: bool = False) -> list[Reply]:
        """The replies, in order. If the link breaks, the rest of them are the error.

        `unknown`: a broken link leaves the outcome open."""
        async with self._slots:
            replies: list[Reply] = []
            try:
                link = await self._take()
            except AmbError as error:
                return [error] * len(commands)
            try:
                async with asyncio.timeout(self._options.response_timeout + _longest_wait(commands)):
                    await link.ask(commands)
                    while link.owed:
                        replies.append(await link.answer())
                    await self._learn(link, commands, replies)
            except NATIVE as native:
                await link.close()
                error = translate(native, doing, unknown=unknown)
                return replies + [error] * (len(commands) - len(replies))
            except BaseException:
                await link.close()
                raise
            if any(isinstance(reply, ReadOnlyError) for reply in replies):
                await link.close()
            else:
                self._free.append(link)
            return replies

    async def _take(self) -> Link:
        while self._free:
            link = self._free.pop()
            if not await link.stale():
                return link
            await link.close()
        return await self.link()

    async def _learn(self, link: Link, commands: Sequence[Command], replies: list[Reply]) -> None:
        """A server that has restarted knows no scripts: teach it, and ask again."""
        again = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if not again:
            return
        await link.ask([*_scripts.LOAD, *(commands[i] for i in again)])
        learnt = [await link.answer() for _ in range(link.owed)]
        for i, reply in zip(again, learnt[len(_scripts.LOAD) :], strict=True):
            replies[i] = reply

    async def close(self) -> None:
        while self._free:
            await self._free.pop().close()


def _longest_wait(commands: Sequence[Command]) -> float:
    return max((c[2] / 1000 for c in commands if c[0] == "WAIT"), default=0.0)


class Servers:
    """The server, or all of a Cluster's: routes commands by key."""

    def __init__(self, options: RedisBroker, one: _Node | None, cluster: RedisCluster | None = None) -> None:
        self._options = options
        self._one = one
        self._cluster = cluster
        self._nodes: dict[str, _Node] = {}
        self._refreshing = anyio.Lock(fast_acquire=True)

    @property
    def clustered(self) -> bool:
        return self._cluster is not None

    async def link(self, key: bytes) -> Link:
        """A connection of the caller's own to the server that has the key."""
        return await self._node(key).link()

    async def one(self, key: bytes, command: Command, doing: str) -> Reply:
        """The reply to one command. Raises what the server or the link had to say instead."""
        return checked((await self.call([(key, command)], doing))[0], doing)

    async def call(self, commands: Sequence[tuple[bytes, Command]], doing: str, unknown: bool = False) -> list[Reply]:
        """The replies, in order; errors are among them. One round trip per server."""
        if self._one is not None:
            return await self._one.call([command for _, command in commands], doing, unknown)
        replies: list[Reply] = [None] * len(commands)
        todo: Sequence[int] = range(len(commands))
        for _ in range(3):
            for node, indexes in self._by_node(commands, todo):
                got = await node.call([commands[i][1] for i in indexes], doing, unknown)
                for i, reply in zip(indexes, got, strict=True):
                    replies[i] = (
                        await self._redirected(commands[i][1], reply, doing) if isinstance(reply, AskError) else reply
                    )
            todo = [i for i in todo if isinstance(replies[i], MovedError)]
            if not todo and not any(isinstance(reply, Unavailable | PublishUnknown) for reply in replies):
                return replies
            await self._refresh()
            if not todo:
                break
        return replies

    def _by_node(self, commands: Sequence[tuple[bytes, Command]], todo: Iterable[int]) -> list[tuple[_Node, list[int]]]:
        grouped: dict[int, tuple[_Node, list[int]]] = {}
        for i in todo:
            node = self._node(commands[i][0])
            grouped.setdefault(id(node), (node, []))[1].append(i)
        return list(grouped.values())

    def _node(self, key: bytes) -> _Node:
        if self._one is not None:
            return self._one
        assert self._cluster is not None
        try:
            found = self._cluster.get_node_from_key(cast(str, key))
        except RedisError as error:
            raise translate(error, "find the Cluster node of a key") from error
        if found is None:
            raise Unavailable("no node of the Redis Cluster serves this key at the moment")
        return self._known(found)

    def _known(self, found: ClusterNode) -> _Node:
        if found.name not in self._nodes:
            self._nodes[found.name] = _Node(lambda: found.connection_class(**found.connection_kwargs), self._options)
        return self._nodes[found.name]

    async def _redirected(self, command: Command, asked: AskError, doing: str) -> Reply:
        assert self._cluster is not None
        found = self._cluster.get_node(host=asked.host, port=asked.port)
        if found is None:
            return Unavailable(f"{doing}: a slot is moving to a node that is not known yet")
        return (await self._known(found).call([("ASKING",), command], doing))[1]

    async def _refresh(self) -> None:
        assert self._cluster is not None
        async with self._refreshing:
            try:
                await self._cluster.nodes_manager.initialize()
            except NATIVE:
                # The old map stays; the error that led here is reported.
                return

    async def close(self) -> None:
        for node in (*self._nodes.values(), *([self._one] if self._one else ())):
            await node.close()


@asynccontextmanager
async def servers(options: RedisBroker) -> AsyncIterator[Servers]:
    """The servers the options name, connected."""
    async with _topology(options) as found:
        try:
            await found.one(b"", ("PING",), "connect to Redis")
            yield found
        finally:
            await found.close()


@asynccontextmanager
async def _topology(options: RedisBroker) -> AsyncIterator[Servers]:
    try:
        known = _arguments(options)
        if options.cluster_nodes:
            cluster = _cluster(options, known)
            try:
                async with asyncio.timeout(options.connect_timeout):
                    await cluster.initialize()
                yield Servers(options, None, cluster)
            finally:
                await cluster.aclose()
        elif options.sentinel_nodes:
            sentinel = _sentinel(options, known)
            pool = _sentinel_pool(options, sentinel, known)
            try:
                yield Servers(options, _Node(pool.make_connection, options))
            finally:
                await sentinel.aclose()
        else:
            single = ConnectionPool(**known)
            yield Servers(options, _Node(single.make_connection, options))
    except AmbError:
        # Some are an OSError or a TimeoutError too.
        raise
    except NATIVE as error:
        raise translate(error, "connect to Redis") from error
    except TypeError as error:
        raise ConfigurationError(
            f"RedisBroker: redis-py does not take an option of client_options or the URL: {error}"
        ) from error


def _arguments(options: RedisBroker) -> dict[str, Any]:
    """redis-py's arguments. Its own time-outs and retries are off: they would hide an outage."""
    known: dict[str, Any] = dict(parse_url(options.url)) if not options.cluster_nodes else {}
    for name in ("db", "username", "password"):
        if getattr(options, name) is not None:
            known[name] = getattr(options, name)
    if options.ssl or known.get("connection_class") is SSLConnection:
        known["connection_class"] = SSLConnection
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"):
            known[name] = getattr(options, name)
    known.update(
        socket_timeout=None,
        socket_connect_timeout=options.connect_timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=False,
    )
    return known | options.client_options


def _cluster(options: RedisBroker, known: dict[str, Any]) -> RedisCluster:
    nodes = [parse_url(url) for url in options.cluster_nodes]
    first = dict(nodes[0])
    tls = known.pop("connection_class", first.pop("connection_class", Connection)) is SSLConnection
    for name in ("username", "password"):
        if name in first:
            known.setdefault(name, first[name])
    if tls:
        known["ssl"] = True
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"):
            known[name] = getattr(options, name)
    known.pop("retry")
    startup = [ClusterNode(str(node.get("host", "localhost")), int(node.get("port", 6379))) for node in nodes]
    return RedisCluster(startup_nodes=startup, retry=Retry(NoBackoff(), 0), require_full_coverage=False, **known)


def _sentinel(options: RedisBroker, known: dict[str, Any]) -> Sentinel:
    nodes = [dict(parse_url(url)) for url in options.sentinel_nodes]
    own = {name: nodes[0][name] for name in ("username", "password") if name in nodes[0]}
    if nodes[0].get("connection_class") is SSLConnection:
        own |= {"ssl": True} | {name: value for name, value in known.items() if name.startswith("ssl_")}
    own |= {"socket_timeout": options.connect_timeout, "socket_connect_timeout": options.connect_timeout}
    return Sentinel([(node.get("host", "localhost"), node.get("port", 26379)) for node in nodes], sentinel_kwargs=own)


def _sentinel_pool(options: RedisBroker, sentinel: Sentinel, known: dict[str, Any]) -> SentinelConnectionPool:
    arguments = {name: value for name, value in known.items() if name not in ("host", "port", "connection_class")}
    arguments["ssl"] = known.get("connection_class") is SSLConnection
    return SentinelConnectionPool(options.sentinel_service, sentinel, **arguments)
