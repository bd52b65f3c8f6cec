"""Compressed JSON."""

from __future__ import annotations

import json
import zlib
from typing import Any

import msgspec
from amb_core.errors import DecodeError, EncodeError
from amb_core.serializer import Decoder

CONTENT_TYPE = "application/vnd.acme.packed"
#: A small body may unpack to anything; no more than this is believed.
LIMIT = 64 * 1024 * 1024


class PackedSerializer:
    """Plain values as compressed JSON. Implements `amb_core.serializer.Serializer`."""

    name = "acme"
    content_type = CONTENT_TYPE

    def encode(self, value: object) -> tuple[bytes, str]:
        try:
            text = json.dumps(value, allow_nan=False)
            same = json.loads(text) == value
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodeError(f"acme cannot pack {type(value).__name__}: {error}") from error
        if not same:
            raise EncodeError(f"acme cannot pack {type(value).__name__}: it would come back as something else")
        return zlib.compress(text.encode(), 1), CONTENT_TYPE

    def decoder(self, type: Any) -> Decoder:
        plain = msgspec.json.Decoder(type)

        def decode(body: bytes, content_type: str) -> object:
            try:
                unpack = zlib.decompressobj()
                text = unpack.decompress(body, LIMIT)
                if not unpack.eof or unpack.unused_data:
                    raise DecodeError("acme: the packed JSON is cut off, too long, or followed by something else")
                return plain.decode(text)
            except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise DecodeError(f"acme: not the packed JSON that was expected: {error}") from error

        return decode
