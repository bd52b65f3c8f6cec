"""Which server a command goes to: the only one, or the one of a Cluster that has the key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

import anyio
from amb_core.errors import PublishUnknown, Unavailable
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import AskError, MovedError, RedisError

from ._errors import NATIVE, translate
from ._links import Command, Link, Node, Reply, checked

if TYPE_CHECKING:
    from .broker import RedisBroker

__all__ = ["Servers"]


class Servers:
    """The server, or all of a Cluster's: routes commands by key."""

    def __init__(
        self,
        options: RedisBroker,
        *,
        one: Node | None = None,
        cluster: RedisCluster | None = None,
        aside: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._options = options
        self._one = one
        self._cluster = cluster
        #: Closes what found the server.
        self._aside = aside
        self._nodes: dict[str, Node] = {}
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
                    # A MovedError is an AskError too, but for good: it needs a new map.
                    asked = isinstance(reply, AskError) and not isinstance(reply, MovedError)
                    replies[i] = await self._redirected(commands[i][1], reply, doing) if asked else reply
            todo = [i for i in todo if isinstance(replies[i], MovedError)]
            if not todo and not any(isinstance(reply, Unavailable | PublishUnknown) for reply in replies):
                return replies
            await self._refresh()
            if not todo:
                break
        return replies

    def _by_node(self, commands: Sequence[tuple[bytes, Command]], todo: Iterable[int]) -> list[tuple[Node, list[int]]]:
        grouped: dict[int, tuple[Node, list[int]]] = {}
        for i in todo:
            node = self._node(commands[i][0])
            grouped.setdefault(id(node), (node, []))[1].append(i)
        return list(grouped.values())

    def _node(self, key: bytes) -> Node:
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

    def _known(self, found: ClusterNode) -> Node:
        if found.name not in self._nodes:
            self._nodes[found.name] = Node(lambda: found.connection_class(**found.connection_kwargs), self._options)
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

    async def begin(self) -> None:
        """Connect; returns when a server has answered."""
        if self._cluster is not None:
            try:
                async with asyncio.timeout(self._options.connect_timeout):
                    await self._cluster.initialize()
            except NATIVE as error:
                raise translate(error, "connect to the Redis Cluster") from error
        await self.one(b"", ("PING",), "connect to Redis")

    async def close(self) -> None:
        """Hang up."""
        for node in (*self._nodes.values(), *([self._one] if self._one else ())):
            await node.close()
        if self._cluster is not None:
            await self._cluster.aclose()
        if self._aside is not None:
            await self._aside()
