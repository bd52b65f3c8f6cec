"""A TCP proxy that misbehaves on request: the cable between a bus and its broker, for fault tests."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import anyio
import anyio.abc

__all__ = ["FaultProxy"]

Direction = Literal["up", "down"]


class _Link:
    """One proxied connection."""

    def __init__(
        self, client: anyio.abc.SocketStream, server: anyio.abc.SocketStream, scope: anyio.CancelScope
    ) -> None:
        self.client, self.server, self.scope = client, server, scope

    def reset(self) -> None:
        """End both halves at once, with a reset instead of a goodbye."""
        for stream in (self.client, self.server):
            raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.scope.cancel()


class FaultProxy:
    """Forwards to one address until told otherwise. Use it with ``async with FaultProxy.to(host, port)``.

    Every switch may be turned at any time and works on live connections.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        #: Where to connect to instead of the broker.
        self.host, self.port = "127.0.0.1", 0
        #: Seconds that every chunk is held back.
        self.latency = 0.0
        #: How many connections were made through it.
        self.accepted = 0
        self._links: set[_Link] = set()
        self._refusing = False
        self._holes: set[Direction] = set()
        self._cut_after: dict[Direction, int] = {}

    @classmethod
    @asynccontextmanager
    async def to(cls, host: str, port: int) -> AsyncIterator[FaultProxy]:
        """A running proxy to that address."""
        proxy = cls(host, port)
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            proxy.port = listener.extra(anyio.abc.SocketAttribute.local_port)
            group.start_soon(listener.serve, proxy._serve)
            try:
                yield proxy
            finally:
                group.cancel_scope.cancel()

    @property
    def links(self) -> int:
        """How many connections run through it now."""
        return len(self._links)

    def reset(self) -> int:
        """Break every connection, rudely; returns how many. New ones are accepted."""
        links = list(self._links)
        for link in links:
            link.reset()
        # Not once their tasks have ended: who looks at `links` now must see new ones only.
        self._links.clear()
        return len(links)

    def refuse(self) -> None:
        """Break every connection and accept no new one until `restore`."""
        self._refusing = True
        self.reset()

    def black_hole(self, *directions: Direction) -> None:
        """Swallow what flows ``"up"`` to the broker, ``"down"`` from it, or both if none is named; new
        connections are accepted and stay silent."""
        self._holes.update(directions or ("up", "down"))

    def cut_after(self, count: int, direction: Direction = "down") -> None:
        """Break the connection that carries the `count`-th byte from now on."""
        self._cut_after[direction] = count

    def restore(self) -> None:
        """Forward again. What was swallowed stays lost, so connections from that time are broken."""
        holed = bool(self._holes)
        self._refusing = False
        self.latency = 0.0
        self._holes.clear()
        self._cut_after.clear()
        if holed:
            self.reset()

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        self.accepted += 1
        async with client:
            if self._refusing:
                client.extra(anyio.abc.SocketAttribute.raw_socket).setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
                )
                return
            try:
                server = await anyio.connect_tcp(*self.target)
            except OSError:
                return
            async with server:
                await self._join(client, server)

    async def _join(self, client: anyio.abc.SocketStream, server: anyio.abc.SocketStream) -> None:
        async with anyio.create_task_group() as group:
            link = _Link(client, server, group.cancel_scope)
            self._links.add(link)
            try:
                group.start_soon(self._pump, link, "up")
                await self._pump(link, "down")
            finally:
                self._links.discard(link)
                group.cancel_scope.cancel()

    async def _pump(self, link: _Link, direction: Direction) -> None:
        source, sink = (link.client, link.server) if direction == "up" else (link.server, link.client)
        try:
            async for chunk in source:
                if self.latency:
                    await anyio.sleep(self.latency)
                if direction in self._holes:
                    continue
                if self._is_cut(link, direction, len(chunk)):
                    return
                await sink.send(chunk)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            pass
        link.scope.cancel()

    def _is_cut(self, link: _Link, direction: Direction, size: int) -> bool:
        left = self._cut_after.get(direction)
        if left is None:
            return False
        if size < left:
            self._cut_after[direction] = left - size
            return False
        del self._cut_after[direction]
        link.reset()
        return True
