"""An AMQP connection: headers, SASL, frames in and out, and its sessions."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

from . import outcomes
from .codec import Array, CodecError
from .entry import Refusal
from .frames import (
    AMQP_HEADER,
    SASL_HEADER,
    Begin,
    Close,
    End,
    Init,
    Mechanisms,
    Open,
    Outcome,
    Performative,
    decode_frame,
    encode_frame,
)
from .session import AmqpSession

if TYPE_CHECKING:
    from .service import Service

_FRAME = 65536
_SMALLEST = 512
_EMPTY = struct.pack(">IBBH", 8, 2, 0, 0)


class Connection:
    """One client's connection, fed with bytes."""

    def __init__(self, service: Service, transport: asyncio.Transport) -> None:
        #: What its tokens allow, by the path of the entity.
        self.claims: dict[str, tuple[str, ...]] = {}
        self.largest_payload = _SMALLEST
        self._service, self._transport = service, transport
        self._received = b""
        self._outgoing: list[bytes] = []
        self._sessions: dict[int, AmqpSession] = {}
        self._beat: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Handle whole frames, and keep the rest."""
        data = self._received + data if self._received else data
        pos = 0
        try:
            while (size := self._size(data, pos)) and pos + size <= len(data):
                self._handle(data[pos : pos + size])
                pos += size
        except (CodecError, Refusal, struct.error) as error:
            self._fail("amqp:decode-error" if isinstance(error, CodecError) else "amqp:not-allowed", str(error))
        self._received = data[pos:]

    def lost(self) -> None:
        """The client is gone."""
        if self._beat is not None:
            self._beat.cancel()
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.end()

    def send(self, channel: int, performative: Performative, payload: bytes = b"") -> None:
        """Send a frame, together with what else is sent in this turn of the loop."""
        self._write(encode_frame(channel, performative, payload))

    def flush(self) -> None:
        """Write what was sent; what it confirms is in the journal before."""
        self._service.journal.flush()
        if self._outgoing and not self._transport.is_closing():
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _write(self, data: bytes) -> None:
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self.flush)
        self._outgoing.append(data)

    def _size(self, data: bytes, pos: int) -> int:
        if len(data) - pos < 8:
            return 0
        if data.startswith(b"AMQP", pos):
            return 8
        (size,) = struct.unpack_from(">I", data, pos)
        if not 8 <= size <= _FRAME:
            raise CodecError(f"a frame of {size} bytes")
        return int(size)

    def _handle(self, frame: bytes) -> None:
        if frame == SASL_HEADER:
            self._write(SASL_HEADER)
            self.send(0, Mechanisms(_mechanisms()))
        elif frame == AMQP_HEADER:
            self._write(AMQP_HEADER)
        elif frame.startswith(b"AMQP"):
            raise CodecError(f"protocol {frame!r} is not spoken here")
        else:
            channel, performative, payload = decode_frame(frame)
            if performative is not None:
                self._received_frame(channel, performative, payload)

    def _received_frame(self, channel: int, performative: Performative, payload: bytes) -> None:
        if isinstance(performative, Init):
            self.send(0, Outcome(0))
        elif isinstance(performative, Open):
            self._open(performative)
        elif isinstance(performative, Begin):
            self._sessions[channel] = AmqpSession(self, channel, performative, self._service)
        elif isinstance(performative, End):
            self._end(channel)
        elif isinstance(performative, Close):
            self._close(Close())
        elif channel in self._sessions:
            self._sessions[channel].received(performative, payload)
        else:
            raise Refusal("amqp:not-allowed", f"There is no session on channel {channel}.")

    def _open(self, opened: Open) -> None:
        largest = min(opened.max_frame_size or _FRAME, _FRAME)
        # What a transfer's performative may take beside its payload.
        self.largest_payload = max(largest, _SMALLEST) - 128
        self.send(0, Open("amb-servicebus", opened.hostname, _FRAME, 255, 240_000))
        if opened.idle_time_out:
            self._keep_alive(opened.idle_time_out / 2000)

    def _keep_alive(self, every: float) -> None:
        self._write(_EMPTY)
        self._beat = asyncio.get_running_loop().call_later(every, self._keep_alive, every)

    def _end(self, channel: int) -> None:
        session = self._sessions.pop(channel, None)
        if session is not None:
            session.end()
            self.send(channel, End())

    def _fail(self, condition: str, why: str) -> None:
        self._close(Close(outcomes.error(Refusal(condition, why))))

    def _close(self, close: Close) -> None:
        self.send(0, close)
        self.flush()
        self.lost()
        self._transport.close()


def _mechanisms() -> object:
    """The ways of saying who one is: none, as tokens follow."""
    names = [b"ANONYMOUS", b"EXTERNAL", b"MSSBCBS"]
    return Array(0xA3, tuple(bytes((len(name),)) + name for name in names))
