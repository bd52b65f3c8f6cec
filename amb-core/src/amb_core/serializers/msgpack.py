"""MessagePack: smaller than JSON, with real bytes and timestamps."""

from __future__ import annotations

import datetime as dates
from collections.abc import Callable
from typing import Any

import msgspec

from ..errors import EncodeError
from ..serializer import Decoder
from ._shared import check_type, encode_error, guarded, is_pydantic, make_custom, plain, pydantic_decoder

__all__ = ["MsgPackSerializer"]

_decode_any = msgspec.msgpack.Decoder().decode


class MsgPackSerializer:
    """Payloads as MessagePack, by the specification with ``bin`` and timestamps.

    Takes the types `JsonSerializer` takes. Bytes, datetimes with a time zone (which come back in UTC), NaN and
    infinity travel as themselves; Decimals, UUIDs, dates and datetimes without a time zone as text. Integers
    below -2**63 or above 2**64 - 1 have no form in MessagePack and are refused, as are lone surrogates.

    The options mean what they mean in the ``msgpack`` library. `use_bin_type`: False writes the format from
    before 2013, in which bytes and text are the same kind, for readers that know no other; bytes that are no
    UTF-8 cannot be read back by this serializer then. `strict_map_key`: only text and bytes may be keys of a
    map, which is checked when writing and when reading. `datetime`: False writes datetimes as ISO 8601 text.
    """

    name = "msgpack"
    content_type = "application/msgpack"

    def __init__(self, *, use_bin_type: bool = True, strict_map_key: bool = False, datetime: bool = True) -> None:
        self._strict = strict_map_key
        pack: Callable[[Any], bytes] = msgspec.msgpack.Encoder(enc_hook=plain).encode if use_bin_type else _pack_raw
        kept: tuple[type, ...] = (bytes, bytearray, dates.datetime) if datetime else (bytes, bytearray)
        if use_bin_type and datetime:
            self._pack = pack
        else:
            self._pack = lambda value: pack(msgspec.to_builtins(value, builtin_types=kept, enc_hook=plain))

    def encode(self, value: object) -> tuple[bytes, str]:
        """See `amb_core.serializer.Serializer.encode`."""
        try:
            body = self._pack(value)
            if self._strict:
                _check_keys(_decode_any(body), "$")
        except OverflowError:
            raise EncodeError(
                f"a {type(value).__name__} cannot be sent as MessagePack: it has an integer of more "
                "than 64 bits; send it as text, or use json"
            ) from None
        except Exception as error:
            raise encode_error("MessagePack", value, error) from error
        return body, "application/msgpack"

    def decoder(self, type: Any) -> Decoder:
        """See `amb_core.serializer.Serializer.decoder`."""
        expected = Any if type is object else type
        if expected is not Any:
            check_type(expected, "MessagePack")
        decode = _typed(expected)
        return guarded(_with_checked_keys(decode) if self._strict else decode, "MessagePack", expected)


def _typed(expected: Any) -> Callable[[bytes], object]:
    if is_pydantic(expected):
        validate = pydantic_decoder(expected, json=False)
        return lambda body: validate(_decode_any(body))
    decode: Callable[[bytes], object] = msgspec.msgpack.Decoder(expected, dec_hook=make_custom).decode
    return decode


def _with_checked_keys(decode: Callable[[bytes], object]) -> Callable[[bytes], object]:
    def checked(body: bytes) -> object:
        _check_keys(_decode_any(body), "$")
        return decode(body)

    return checked


def _check_keys(tree: Any, path: str) -> None:
    if isinstance(tree, dict):
        for key, item in tree.items():
            if not isinstance(key, str | bytes):
                raise ValueError(f"strict_map_key is set and the map at `{path}` has the key {key!r}")
            _check_keys(item, f"{path}.{key!s}")
    elif isinstance(tree, list):
        for i, item in enumerate(tree):
            _check_keys(item, f"{path}[{i}]")


def _pack_raw(tree: Any) -> bytes:
    """`tree` in the format that has one kind for text and bytes."""
    if isinstance(tree, str):
        return _raw(tree.encode())
    if isinstance(tree, bytes | bytearray):
        return _raw(bytes(tree))
    if isinstance(tree, dict):
        items = b"".join(_pack_raw(key) + _pack_raw(item) for key, item in tree.items())
        return _head(len(tree), 0x80, 15, 0xDE) + items
    if isinstance(tree, list | tuple):
        return _head(len(tree), 0x90, 15, 0xDC) + b"".join(map(_pack_raw, tree))
    return msgspec.msgpack.encode(tree)


def _raw(body: bytes) -> bytes:
    return _head(len(body), 0xA0, 31, 0xDA) + body


def _head(count: int, short: int, longest: int, code16: int) -> bytes:
    """The type and length of a container: in one byte, or with 16 or 32 bits of length."""
    if count <= longest:
        return bytes([short | count])
    return (
        bytes([code16]) + count.to_bytes(2, "big")
        if count < 1 << 16
        else bytes([code16 + 1]) + count.to_bytes(4, "big")
    )
