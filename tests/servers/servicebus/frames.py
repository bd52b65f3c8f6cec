"""AMQP 1.0 frames: the performatives of the transport, and those of SASL that are needed (OASIS AMQP 1.0, 2 and 5)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import cast

import msgspec

from .codec import CodecError, Symbol, Ubyte, Uint, Ulong, Ushort, decode, encode, encode_list

AMQP_HEADER = b"AMQP\x00\x01\x00\x00"
SASL_HEADER = b"AMQP\x03\x01\x00\x00"
#: A frame that is not AMQP's, and its performatives.
SASL = 1

Properties = dict[object, object]


class Error(msgspec.Struct):
    """Why an endpoint was closed or a delivery refused."""

    condition: str
    description: str | None = None
    info: Properties | None = None


class Open(msgspec.Struct):
    container_id: str
    hostname: str | None = None
    max_frame_size: int | None = None
    channel_max: int | None = None
    idle_time_out: int | None = None


class Begin(msgspec.Struct):
    remote_channel: int | None
    next_outgoing_id: int
    incoming_window: int
    outgoing_window: int
    handle_max: int | None = None


class Attach(msgspec.Struct):
    name: str
    handle: int
    role: bool
    snd_settle_mode: int | None = None
    rcv_settle_mode: int | None = None
    source: object = None
    target: object = None
    unsettled: object = None
    incomplete_unsettled: bool | None = None
    initial_delivery_count: int | None = None
    max_message_size: int | None = None
    offered_capabilities: object = None
    desired_capabilities: object = None
    properties: Properties | None = None


class Flow(msgspec.Struct):
    next_incoming_id: int | None
    incoming_window: int
    next_outgoing_id: int
    outgoing_window: int
    handle: int | None = None
    delivery_count: int | None = None
    link_credit: int | None = None
    available: int | None = None
    drain: bool | None = None
    echo: bool | None = None


class Transfer(msgspec.Struct):
    handle: int
    delivery_id: int | None = None
    delivery_tag: bytes | None = None
    message_format: int | None = None
    settled: bool | None = None
    more: bool | None = None
    rcv_settle_mode: int | None = None
    state: object = None
    resume: bool | None = None
    aborted: bool | None = None
    batchable: bool | None = None


class Disposition(msgspec.Struct):
    role: bool
    first: int
    last: int | None = None
    settled: bool | None = None
    state: object = None
    batchable: bool | None = None


class Detach(msgspec.Struct):
    handle: int
    closed: bool | None = None
    error: object = None


class End(msgspec.Struct):
    error: object = None


class Close(msgspec.Struct):
    error: object = None


class Mechanisms(msgspec.Struct):
    mechanisms: object


class Init(msgspec.Struct):
    mechanism: str
    initial_response: bytes | None = None
    hostname: str | None = None


class Outcome(msgspec.Struct):
    code: int


Performative = (
    Open | Begin | Attach | Flow | Transfer | Disposition | Detach | End | Close | Mechanisms | Init | Outcome
)

_CODES: dict[int, type[Performative]] = {
    0x10: Open, 0x11: Begin, 0x12: Attach, 0x13: Flow, 0x14: Transfer, 0x15: Disposition, 0x16: Detach, 0x17: End,
    0x18: Close, 0x40: Mechanisms, 0x41: Init, 0x44: Outcome,
}  # fmt: skip
#: How each field is written whose Python type does not say it.
_AS: dict[type[Performative], dict[str, Callable[..., object]]] = {
    Open: {"max_frame_size": Uint, "channel_max": Ushort, "idle_time_out": Uint},
    Begin: {"remote_channel": Ushort, "next_outgoing_id": Uint, "incoming_window": Uint, "outgoing_window": Uint,
            "handle_max": Uint},
    Attach: {"handle": Uint, "snd_settle_mode": Ubyte, "rcv_settle_mode": Ubyte, "initial_delivery_count": Uint,
             "max_message_size": Ulong},
    Flow: {"next_incoming_id": Uint, "incoming_window": Uint, "next_outgoing_id": Uint, "outgoing_window": Uint,
           "handle": Uint, "delivery_count": Uint, "link_credit": Uint, "available": Uint},
    Transfer: {"handle": Uint, "delivery_id": Uint, "message_format": Uint},
    Disposition: {"first": Uint, "last": Uint},
    Detach: {"handle": Uint}, End: {}, Close: {}, Mechanisms: {}, Init: {"mechanism": Symbol},
    Outcome: {"code": Ubyte},
}  # fmt: skip
_FIELDS = {kind: [(name, _AS[kind].get(name)) for name in kind.__struct_fields__] for kind in _CODES.values()}
_DESCRIPTORS = {kind: b"\x00\x53" + bytes((code,)) for code, kind in _CODES.items()}


def encode_frame(channel: int, performative: Performative, payload: bytes = b"") -> bytes:
    """One frame of bytes; `payload` follows the performative of a transfer."""
    kind = type(performative)
    items = []
    for name, convert in _FIELDS[kind]:
        value = getattr(performative, name)
        items.append(b"\x40" if value is None else encode(convert(value) if convert else value))
    while items and items[-1] == b"\x40":
        items.pop()
    body = _DESCRIPTORS[kind] + encode_list(items)
    of_sasl = kind in (Mechanisms, Init, Outcome)
    return struct.pack(">IBBH", 8 + len(body) + len(payload), 2, int(of_sasl), channel) + body + payload


def decode_frame(frame: bytes) -> tuple[int, Performative | None, bytes]:
    """The channel, the performative (None if the frame only says that the peer is alive) and the payload."""
    offset, _, channel = struct.unpack_from(">BBH", frame, 4)
    pos = 4 * offset
    if pos == len(frame):
        return channel, None, b""
    if frame[pos] != 0:
        raise CodecError("a frame without a performative")
    code, pos = decode(frame, pos + 1)
    kind = _CODES.get(cast(int, code))
    if kind is None:
        raise CodecError(f"{code!r} is no performative")
    fields, pos = decode(frame, pos)
    make = cast("Callable[..., Performative]", kind)
    return channel, make(*cast("list[object]", fields)[: len(kind.__struct_fields__)]), frame[pos:]
