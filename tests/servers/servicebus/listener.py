"""Ports on which AMQP and HTTP are spoken, plain and with TLS: the first bytes tell which."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, cast

from .connection import Connection
from .http import HttpConnection
from .service import Service

_HANDSHAKE = 0x16


class _Spoken(Protocol):
    def data_received(self, data: bytes) -> None: ...

    def lost(self) -> None: ...


class _Client(asyncio.Protocol):
    """Somebody who connected, and speaks whatever the first bytes say."""

    def __init__(self, service: Service, clients: set[_Client]) -> None:
        self._service, self._clients = service, clients
        self._spoken: _Spoken | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._clients.add(self)

    def data_received(self, data: bytes) -> None:
        if self._spoken is None:
            assert self.transport is not None
            kind = Connection if data.startswith(b"A") else HttpConnection
            self._spoken = kind(self._service, self.transport)
        self._spoken.data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.discard(self)
        if self._spoken is not None:
            self._spoken.lost()


@asynccontextmanager
async def listen(
    service: Service, host: str, ports: Sequence[int], context: ssl.SSLContext | None
) -> AsyncIterator[None]:
    """Serves on these ports for as long as the block lasts."""
    clients: set[_Client] = set()
    listening = [socket.create_server((host, port), backlog=256) for port in ports]
    loop = asyncio.get_running_loop()
    accepting = [loop.create_task(_accept(each, service, clients, context)) for each in listening]
    try:
        yield
    finally:
        for task in accepting:
            task.cancel()
        for each in listening:
            each.close()
        for client in list(clients):
            if client.transport is not None:
                client.transport.abort()


async def _accept(
    listening: socket.socket, service: Service, clients: set[_Client], context: ssl.SSLContext | None
) -> None:
    loop = asyncio.get_running_loop()
    listening.setblocking(False)
    greeting: set[asyncio.Task[None]] = set()
    while True:
        sock, _ = await loop.sock_accept(listening)
        task = loop.create_task(_greet(sock, service, clients, context))
        greeting.add(task)
        task.add_done_callback(greeting.discard)


async def _greet(sock: socket.socket, service: Service, clients: set[_Client], context: ssl.SSLContext | None) -> None:
    """Look at the first byte without taking it, as what reads the connection wants all of them."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(sock, readable.set_result, None)
    try:
        await readable
    finally:
        loop.remove_reader(sock)
    try:
        first = sock.recv(1, socket.MSG_PEEK)
        if not first:
            raise ConnectionError("closed without a word")
        tls = context if first[0] == _HANDSHAKE else None
        await loop.connect_accepted_socket(lambda: _Client(service, clients), sock, ssl=tls)
    except (OSError, ssl.SSLError):
        sock.close()
