"""AMQP 1.0 values to bytes and back (OASIS AMQP 1.0, part 1)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from uuid import UUID

import msgspec

#: What a constructor's reader makes of the bytes at a position: the value, and where the next one starts.
Reader = Callable[[bytes, int], tuple[object, int]]


class CodecError(ValueError):
    """Bytes that are no AMQP value."""


class Symbol(str):
    """A string of ASCII from a domain that the protocol knows."""

    __slots__ = ()


class Ubyte(int):
    """An unsigned byte."""


class Ushort(int):
    """An unsigned integer of 16 bits."""


class Uint(int):
    """An unsigned integer of 32 bits."""


class Ulong(int):
    """An unsigned integer of 64 bits."""


class Int(int):
    """A signed integer of 32 bits; a plain ``int`` is one of 64 bits."""


class Timestamp(int):
    """Milliseconds since 1970."""


class Described(msgspec.Struct, frozen=True):
    """A value with a descriptor."""

    descriptor: object
    value: object


class Array(msgspec.Struct, frozen=True):
    """Values of one type: `code` is their constructor, and each one is written by `pack`."""

    code: int
    values: tuple[bytes, ...]


class Raw(msgspec.Struct, frozen=True):
    """A value that is encoded already."""

    encoded: bytes


def longs(values: list[int]) -> Array:
    """An array of long."""
    return Array(0x81, tuple(struct.pack(">q", value) for value in values))


def timestamps(values: list[int]) -> Array:
    """An array of timestamp."""
    return Array(0x83, tuple(struct.pack(">q", value) for value in values))


def strings(values: list[str]) -> Array:
    """An array of string."""
    encoded = [value.encode() for value in values]
    return Array(0xB1, tuple(struct.pack(">I", len(value)) + value for value in encoded))


def decode(data: bytes, pos: int = 0) -> tuple[object, int]:
    """The value at `pos`, and the position behind it. Raises: CodecError."""
    try:
        return _READERS[data[pos]](data, pos + 1)
    except (KeyError, IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise CodecError(f"no AMQP value at byte {pos}: {error!r}") from error


def decode_raw_map(data: bytes, pos: int = 0) -> dict[str, bytes]:
    """A map with its values left encoded, so that they can be written again as they came. Raises: CodecError."""
    code = data[pos]
    if code == 0xC1:
        count, pos = data[pos + 2], pos + 3
    elif code == 0xD1:
        count, pos = struct.unpack_from(">I", data, pos + 5)[0], pos + 9
    else:
        raise CodecError(f"0x{code:02x} is no map")
    entries: dict[str, bytes] = {}
    for _ in range(count // 2):
        key, pos = decode(data, pos)
        start = pos
        _, pos = decode(data, pos)
        entries[str(key)] = data[start:pos]
    return entries


def _fixed(form: str) -> Reader:
    packed = struct.Struct(form)

    def read(data: bytes, pos: int) -> tuple[object, int]:
        return packed.unpack_from(data, pos)[0], pos + packed.size

    return read


def _constant(value: object) -> Reader:
    return lambda data, pos: (value, pos)


def _byte(data: bytes, pos: int) -> tuple[object, int]:
    return data[pos], pos + 1


def _cut(data: bytes, pos: int, size: int) -> tuple[bytes, int]:
    end = pos + size
    if end > len(data):
        raise CodecError(f"{size} bytes are announced at byte {pos}, and {len(data) - pos} are there")
    return data[pos:end], end


def _binary8(data: bytes, pos: int) -> tuple[object, int]:
    return _cut(data, pos + 1, data[pos])


def _binary32(data: bytes, pos: int) -> tuple[object, int]:
    return _cut(data, pos + 4, struct.unpack_from(">I", data, pos)[0])


def _text(read: Reader, make: Callable[[str], str]) -> Reader:
    def text(data: bytes, pos: int) -> tuple[object, int]:
        value, pos = read(data, pos)
        assert isinstance(value, bytes)
        return make(value.decode()), pos

    return text


def _uuid(data: bytes, pos: int) -> tuple[object, int]:
    value, pos = _cut(data, pos, 16)
    return UUID(bytes=value), pos


def _timestamp(data: bytes, pos: int) -> tuple[object, int]:
    return Timestamp(struct.unpack_from(">q", data, pos)[0]), pos + 8


def _opaque(size: int) -> Reader:
    """Values that the emulator passes on without looking at them: characters and decimals."""
    return lambda data, pos: _cut(data, pos, size)


def _items(data: bytes, pos: int, count: int) -> tuple[list[object], int]:
    values = []
    for _ in range(count):
        value, pos = _READERS[data[pos]](data, pos + 1)
        values.append(value)
    return values, pos


def _list8(data: bytes, pos: int) -> tuple[object, int]:
    return _items(data, pos + 2, data[pos + 1])


def _list32(data: bytes, pos: int) -> tuple[object, int]:
    return _items(data, pos + 8, struct.unpack_from(">I", data, pos + 4)[0])


def _pairs(read: Reader) -> Reader:
    def pairs(data: bytes, pos: int) -> tuple[object, int]:
        values, pos = read(data, pos)
        assert isinstance(values, list)
        return dict(zip(values[::2], values[1::2], strict=True)), pos

    return pairs


def _array(data: bytes, pos: int, count: int) -> list[object]:
    if not count:
        return []
    code, pos = data[pos], pos + 1
    if code == 0:
        _, pos = decode(data, pos)
        code, pos = data[pos], pos + 1
    values = []
    for _ in range(count):
        value, pos = _READERS[code](data, pos)
        values.append(value)
    return values


def _array8(data: bytes, pos: int) -> tuple[object, int]:
    return _array(data, pos + 2, data[pos + 1]), pos + 1 + data[pos]


def _array32(data: bytes, pos: int) -> tuple[object, int]:
    size, count = struct.unpack_from(">II", data, pos)
    return _array(data, pos + 8, count), pos + 4 + size


def _described(data: bytes, pos: int) -> tuple[object, int]:
    descriptor, pos = decode(data, pos)
    value, pos = decode(data, pos)
    return Described(descriptor, value), pos


_READERS: dict[int, Reader] = {
    0x00: _described,
    0x40: _constant(None),
    0x41: _constant(True),
    0x42: _constant(False),
    0x43: _constant(0),
    0x44: _constant(0),
    0x45: lambda data, pos: ([], pos),
    0x50: _byte,
    0x51: _fixed(">b"),
    0x52: _byte,
    0x53: _byte,
    0x54: _fixed(">b"),
    0x55: _fixed(">b"),
    0x56: _fixed(">?"),
    0x60: _fixed(">H"),
    0x61: _fixed(">h"),
    0x70: _fixed(">I"),
    0x71: _fixed(">i"),
    0x72: _fixed(">f"),
    0x73: _opaque(4),
    0x74: _opaque(4),
    0x80: _fixed(">Q"),
    0x81: _fixed(">q"),
    0x82: _fixed(">d"),
    0x83: _timestamp,
    0x84: _opaque(8),
    0x94: _opaque(16),
    0x98: _uuid,
    0xA0: _binary8,
    0xB0: _binary32,
    0xA1: _text(_binary8, str),
    0xB1: _text(_binary32, str),
    0xA3: _text(_binary8, Symbol),
    0xB3: _text(_binary32, Symbol),
    0xC0: _list8,
    0xD0: _list32,
    0xC1: _pairs(_list8),
    0xD1: _pairs(_list32),
    0xE0: _array8,
    0xF0: _array32,
}


def encode(value: object) -> bytes:
    """The bytes of a value. Raises: CodecError for a type that AMQP does not have."""
    writer = _WRITERS.get(type(value))
    if writer is None:
        raise CodecError(f"AMQP has no {type(value).__name__}")
    return writer(value)


def _uint(value: int) -> bytes:
    if value < 256:
        return bytes((0x52, value)) if value else b"\x43"
    return b"\x70" + value.to_bytes(4, "big")


def _ulong(value: int) -> bytes:
    if value < 256:
        return bytes((0x53, value)) if value else b"\x44"
    return b"\x80" + value.to_bytes(8, "big")


def _sized(short: int, value: bytes) -> bytes:
    if len(value) < 256:
        return bytes((short, len(value))) + value
    return bytes((short + 0x10,)) + struct.pack(">I", len(value)) + value


def _compound(short: int, count: int, body: bytes) -> bytes:
    if count < 256 and len(body) < 255:
        return bytes((short, len(body) + 1, count)) + body
    return bytes((short + 0x10,)) + struct.pack(">II", len(body) + 4, count) + body


def encode_list(items: list[bytes]) -> bytes:
    """A list of values that are encoded already."""
    return _compound(0xC0, len(items), b"".join(items)) if items else b"\x45"


def _map(value: dict[object, object]) -> bytes:
    return _compound(0xC1, 2 * len(value), b"".join(encode(part) for pair in value.items() for part in pair))


def _encode_array(value: Array) -> bytes:
    body = bytes((value.code,)) + b"".join(value.values)
    return b"\xf0" + struct.pack(">II", len(body) + 4, len(value.values)) + body


_WRITERS: dict[type, Callable[..., bytes]] = {
    type(None): lambda value: b"\x40",
    bool: lambda value: b"\x41" if value else b"\x42",
    int: lambda value: b"\x81" + value.to_bytes(8, "big", signed=True),
    float: lambda value: b"\x82" + struct.pack(">d", value),
    Ubyte: lambda value: bytes((0x50, value)),
    Ushort: lambda value: b"\x60" + value.to_bytes(2, "big"),
    Uint: _uint,
    Ulong: _ulong,
    Int: lambda value: b"\x71" + value.to_bytes(4, "big", signed=True),
    Timestamp: lambda value: b"\x83" + value.to_bytes(8, "big", signed=True),
    UUID: lambda value: b"\x98" + value.bytes,
    bytes: lambda value: _sized(0xA0, value),
    str: lambda value: _sized(0xA1, value.encode()),
    Symbol: lambda value: _sized(0xA3, value.encode()),
    list: lambda value: encode_list([encode(item) for item in value]),
    dict: _map,
    Array: _encode_array,
    Described: lambda value: b"\x00" + encode(value.descriptor) + encode(value.value),
    Raw: lambda value: value.encoded,
}
