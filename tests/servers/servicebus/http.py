"""HTTP/1.1 for the administration: one request after the other on a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .admin import administrate

if TYPE_CHECKING:
    from .service import Service


class HttpConnection:
    """One client's connection, fed with bytes."""

    def __init__(self, service: Service, transport: asyncio.Transport) -> None:
        self._service, self._transport = service, transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, rest = self._received.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            size = int(headers.get("content-length", "0"))
            if len(rest) < size:
                return
            body, self._received = rest[:size], rest[size:]
            method, target, *_ = first.split(" ")
            self._answer(method, target, headers, body)

    def lost(self) -> None:
        """The client is gone."""

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        status, answer = administrate(self._service, method, target, headers, body)
        self._service.journal.flush()
        content = answer.encode()
        head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\nContent-Length: {len(content)}\r\n"
        self._transport.write(f"{head}Content-Type: application/atom+xml;charset=utf-8\r\n\r\n".encode() + content)


_REASONS = {200: "OK", 201: "Created", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 409: "Conflict"}
