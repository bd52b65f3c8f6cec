"""nats-py's client, with holes closed that matter to somebody who connects again by himself."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

from nats import errors as native
from nats.aio.client import Client

__all__ = ["NatsClient"]

#: Bytes that are written without waiting for more, and that nobody may add to before they are.
_ENOUGH, _TOO_MUCH = 2**16, 2**21


@lru_cache(maxsize=4096)
def _name(text: str) -> str | None:
    """The name of a header, if it is one."""
    name = text.strip()
    return name if name.isascii() and name.isprintable() and " " not in name else None


class NatsClient(Client):
    """A client for one link: it does not connect again."""

    #: TLS was asked for.
    encrypted = False

    def _connect_command(self) -> bytes:
        # nats-py turns to TLS if the server wants it; credentials must not go to one that does not.
        if self.encrypted and not self._server_info.get("tls_required") and not self._server_info.get("tls_available"):
            raise native.SecureConnWantedError
        return super()._connect_command()

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # As nats-py does it, in a fifth of the time.
        found = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon and (known := _name(name)) is not None:
                found[known] = value.strip()
        return found

    async def _process_pong(self) -> None:
        # An answer to somebody who has given up must not end the reading of everything else.
        self._pings_outstanding = 0
        if self._pongs and not (future := self._pongs.pop(0)).done():
            future.set_result(True)

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # nats-py writes a ping at once, past what is still to be written: its answer would prove nothing.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(b"PING\r\n")
        await self.push()

    async def ping(self, answer: asyncio.Future[Any]) -> None:
        """Set the result of `answer` when the server has carried out everything before."""
        await self._send_ping(answer)

    async def post(
        self, subject: str, body: bytes, reply: str = "", headers: bytes = b"", *, more: bool = False
    ) -> None:
        """Publish, with a block of headers as `_wire` makes it; nats-py's own way looks at each of them again.
        With `more` it may stay here until `push`, to be written along with others."""
        if self.is_closed:
            raise native.ConnectionClosedError
        size = len(headers) + len(body)
        verb, length = ("HPUB", f"{len(headers)} {size}") if headers else ("PUB", f"{size}")
        line = f"{verb} {subject} {reply} {length}\r\n".encode()
        self._pending += (line, headers, body, b"\r\n")
        self._pending_data_size += len(line) + size + 2
        if not more or self._pending_data_size >= _ENOUGH:
            await self.push()

    async def push(self) -> None:
        """Write what was posted: at once if nothing is on its way, which the flusher's task does a turn later."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None or writer.transport.get_write_buffer_size() or not self.is_connected:
            await self._flush_pending(force_flush=self._pending_data_size > _TOO_MUCH)
        elif self._pending:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            writer.writelines(pending)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self._flush_queue is None:
            return  # it has never begun to connect
        try:
            await super()._close(status, do_cbs)
        except OSError:
            # The last words cannot be said any more; all the rest of closing is still to be done.
            self.abort()
            await super()._close(status, do_cbs)

    def abort(self) -> None:
        """End the link without a word, and without waiting to get rid of any. `close` cleans up."""
        self._pending, self._pending_data_size, self._status = [], 0, Client.DISCONNECTED
        # Waiting for a socket to close may never end, after a failed TLS handshake for instance.
        if (writer := getattr(self._transport, "_io_writer", None)) is not None:
            writer.transport.abort()
        self._transport = None
