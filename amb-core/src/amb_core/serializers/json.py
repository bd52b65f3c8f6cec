"""JSON, the default serializer."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any, Literal
from uuid import UUID

import msgspec

from ..errors import ConfigurationError, EncodeError
from ..serializer import Decoder
from ._shared import check_type, encode_error, guarded, is_pydantic, make_custom, plain, pydantic_decoder

__all__ = ["JsonSerializer"]

_KEPT = (bytes, bytearray, date, datetime, time, timedelta, Decimal, UUID)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


class JsonSerializer:
    """Payloads as JSON in UTF-8 (RFC 8259).

    Beside JSON's own types it writes datetimes, dates, UUIDs, Decimals and enums as text or number, bytes as
    base64, sets and tuples as arrays, dataclasses, msgspec Structs, TypedDicts, pydantic and attrs classes as
    objects. A handler annotated with such a type gets it back; without an annotation it gets plain values.
    Integers of any size are exact up to 4,300 digits. NaN and infinity, which JSON does not have, and lone
    surrogates are refused, not altered. At least 300 levels of nesting work; Python's recursion limit ends it.

    `indent`: spaces per level, for people; None: compact. `ensure_ascii`: write everything beyond ASCII as
    ``\\uXXXX``. `date_format`: datetimes as ISO 8601 text, or as seconds since the epoch (a datetime without
    time zone counts as local time; dates stay text); with "epoch" typed handlers also accept numbers where
    they expect a datetime. `decimal_as_string`: Decimals as text, which keeps every digit for every reader, or
    as numbers. Raises: ConfigurationError.
    """

    name = "json"
    content_type = "application/json"

    def __init__(
        self,
        *,
        indent: int | None = None,
        ensure_ascii: bool = False,
        date_format: Literal["iso", "epoch"] = "iso",
        decimal_as_string: bool = True,
    ) -> None:
        if indent is not None and (isinstance(indent, bool) or not isinstance(indent, int) or indent < 1):
            raise ConfigurationError(
                f"JsonSerializer: indent must be None or a number of spaces of at least 1, not {indent!r}"
            )
        if date_format not in ("iso", "epoch"):
            raise ConfigurationError(f"JsonSerializer: date_format must be 'iso' or 'epoch', not {date_format!r}")
        self._epoch = date_format == "epoch"
        self._indent, self._ascii = indent, ensure_ascii
        self._decimals_are_numbers = not decimal_as_string
        #: Something is left to do with what msgspec wrote.
        self._unfinished = indent is not None or ensure_ascii or self._decimals_are_numbers
        encode: Callable[[Any], bytes]
        encode = msgspec.json.Encoder(enc_hook=plain, decimal_format="string" if decimal_as_string else "number").encode
        self._encode: Callable[[Any], bytes] = (
            (lambda value: encode(_with_epoch(_builtins(value)))) if self._epoch else encode
        )

    def encode(self, value: object) -> tuple[bytes, str]:
        """See `amb_core.serializer.Serializer.encode`."""
        try:
            body = self._encode(value)
            # msgspec writes NaN and infinity as null. Searching from the end takes CPython half the time of ``in``.
            if body.rfind(b"null") >= 0 and value is not None:
                _refuse_not_a_number(value)
            if self._unfinished:
                body = self._finished(body)
        except EncodeError:
            raise
        except Exception as error:
            raise encode_error("JSON", value, error) from error
        return body, "application/json"

    def decoder(self, type: Any) -> Decoder:
        """See `amb_core.serializer.Serializer.decoder`."""
        if type is Any or type is object:
            return guarded(msgspec.json.Decoder().decode, "JSON", Any)
        check_type(type, "JSON")
        return guarded(self._typed(type), "JSON", type)

    def _typed(self, type: Any) -> Callable[[bytes], object]:
        if is_pydantic(type):
            return pydantic_decoder(type, json=True)
        decode: Callable[[bytes], object] = msgspec.json.Decoder(
            type, strict=not self._epoch, dec_hook=make_custom
        ).decode
        return decode

    def _finished(self, body: bytes) -> bytes:
        if self._decimals_are_numbers:
            msgspec.json.decode(body)
        if self._indent is not None:
            body = msgspec.json.format(body, indent=self._indent)
        if self._ascii and not body.isascii():
            # Outside of strings JSON is ASCII already.
            body = _NOT_ASCII.sub(_escape, body.decode()).encode()
        return body


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def _builtins(value: object) -> Any:
    return msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=plain)


def _with_epoch(tree: Any) -> Any:
    """A copy in which datetimes are seconds since the epoch."""
    if isinstance(tree, datetime):
        return tree.timestamp()
    if isinstance(tree, dict):
        return {key: _with_epoch(item) for key, item in tree.items()}
    return [_with_epoch(item) for item in tree] if isinstance(tree, list | tuple) else tree


def _refuse_not_a_number(value: object) -> None:
    """Raises: EncodeError, with the place, if there is a float in `value` that JSON has no form for."""
    open_: list[tuple[str, Any]] = [("$", _builtins(value))]
    while open_:
        path, item = open_.pop()
        if isinstance(item, float):
            if not isfinite(item):
                raise EncodeError(
                    f"JSON has no form for {item!r} at `{path}`: send None or text, or use the msgpack serializer"
                )
        elif isinstance(item, dict):
            open_ += [(f"{path}.{key}", each) for key, each in item.items()]
        elif isinstance(item, list | tuple):
            open_ += [(f"{path}[{i}]", each) for i, each in enumerate(item)]
