"""What fastavro does, for one schema at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import msgspec
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.schema import fingerprint, to_parsing_canonical_form

from ..serializer import Schema
from ._avro_guard import checker, kept_by, needs_walk, walk
from ._avro_types import PLAIN, derive, has_schema

__all__ = ["PLAIN", "Compiled", "derive", "has_schema", "is_class"]


def is_class(kind: Any) -> bool:
    """Whether a schema can be derived from it."""
    return isinstance(kind, type) and has_schema(kind)


class Compiled:
    """A schema, ready to write and read by. Raises: whatever is wrong with it."""

    def __init__(self, schema: Schema) -> None:
        #: Every named type, by its full name, as the library fills it.
        named: dict[str, Any] = {}
        _refer(schema, named)
        self.parsed: Any = parse_schema(_value(schema.text), named)
        #: A full name, or the name of a type.
        self.name = _name(self.parsed)
        canonical = schema.text if schema.references else to_parsing_canonical_form(self.parsed)
        self.fingerprint = fingerprint(canonical, "CRC-64-AVRO")
        self.content_type = f"application/avro; schema={self.fingerprint}"
        self._kept = kept_by(self.parsed)
        self._check = checker(self.parsed, named)
        self._walk = walk(self.parsed, named) if needs_walk(self.parsed, named) else None

    def write(self, value: Any) -> bytes:
        """Raises: whatever does not fit."""
        self._check(value)
        stream = BytesIO()
        schemaless_writer(stream, self.parsed, value, strict_allow_default=True)
        return stream.getvalue()

    def write_object(self, value: Any, other: Callable[[Any], Any]) -> bytes:
        """As `write`, for a value that is, or has within, more than dicts and lists. `other`: an ``enc_hook``."""
        return self.write(msgspec.to_builtins(value, builtin_types=self._kept, enc_hook=other))

    def reader(self, by: Compiled | None) -> Callable[[bytes], Any]:
        """What reads bodies written by this schema, as `by` says, or as they are. Raises: whatever is wrong."""
        parsed, wanted, look = self.parsed, None if by is None else by.parsed, self._walk

        def read(body: bytes) -> Any:
            if look is not None:
                look(body)
            stream = BytesIO(body)
            value = schemaless_reader(stream, parsed, wanted)
            if stream.tell() != len(body):
                raise ValueError(f"{len(body) - stream.tell()} bytes are left over")
            return value

        return read


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # the bare name of a type


def _name(parsed: Any) -> str:
    if isinstance(parsed, dict):
        return str(parsed.get("name") or parsed["type"])
    return parsed if isinstance(parsed, str) else "a union"


def _refer(schema: Schema, named: dict[str, Any]) -> None:
    """Parse what the schema refers to, the innermost first."""
    for _, other in schema.references:
        _refer(other, named)
        parse_schema(_value(other.text), named)
