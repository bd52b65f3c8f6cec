"""Apache Avro: typed messages that may change. Needs the extra ``amb-core[avro]``, from construction on."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from ..errors import ConfigurationError, DecodeError, EncodeError, PluginError
from ..serializer import Decoder, Schema
from ._shared import check_type, encode_error, guarded, is_pydantic, make_custom, plain, pydantic_decoder

if TYPE_CHECKING:
    from ._avro import Compiled

__all__ = ["AvroSerializer"]

_MEDIA_TYPE = "application/avro"
#: The CRC-64-AVRO of the schema that the body was written by.
_WRITTEN_BY = re.compile(r";\s*schema=([0-9a-f]{16})\b")
_LONGEST = 64 * 1024 * 1024
#: So many schemas are kept compiled.
_MOST = 1000
#: A schema as it is given: JSON text, the value that it stands for, or the path of an ``.avsc`` file.
_Given: TypeAlias = str | PathLike[str] | Mapping[str, Any] | list[Any]


class AvroSerializer:
    """Payloads as Avro. Whoever reads needs the schema that the writer used.

    Where the broker keeps schemas (``KafkaBroker(schema_registry_url=...)``) it does so for these, and every message
    names its own. Elsewhere both sides must have the same schema, and the content type has its fingerprint, as in
    ``application/avro; schema=1fb2...``: a message written by a schema that is not known here is a DecodeError.

    What a payload is written by: for an object of a class in `schemas`, the schema there; for a msgspec Struct or
    a dataclass, a record derived from it; None, bool, int (64 bits), float, str and bytes are Avro's own types; a
    dict, a list or a pydantic model needs `schema`, or, with a registry, has the latest one of its topic.
    What does not fit exactly is an EncodeError: no field is dropped, no number cut off.

    A handler that takes a class gets an object of it, made from the fields by name: those it does not know are left
    out, and those that are not there have its defaults. Without an annotation it gets dicts, read by `schema`
    where the record has the same name.

    `max_length`: the longest body in bytes, when writing and when reading. Records within each other are read up to 100
    levels deep, and 10,000 items of no length. Raises: PluginError without the extra, ConfigurationError.
    """

    name = "avro"
    content_type = _MEDIA_TYPE

    def __init__(
        self,
        schema: _Given | None = None,
        *,
        schemas: Mapping[type, _Given] | None = None,
        max_length: int = _LONGEST,
    ) -> None:
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
            raise ConfigurationError(f"AvroSerializer: max_length must be a number of bytes, not {max_length!r}")
        try:
            from . import _avro
        except ImportError as error:
            raise PluginError("fastavro is not installed: pip install 'amb-core[avro]'") from error
        self._library, self._longest = _avro, max_length
        self._compiled: OrderedDict[Schema, Compiled] = OrderedDict()
        self._default = None if schema is None else self._given(schema)
        self._given_for = {cls: self._given(one) for cls, one in (schemas or {}).items()}
        #: By type: what objects of it are written by.
        self._schemas: dict[type, Schema | None] = dict(self._given_for)
        for kind, name in _avro.PLAIN.items():
            self._schemas.setdefault(kind, Schema("avro", json.dumps(name), name))
        #: By fingerprint: what was written by one of these can be read without being told more.
        self._own: dict[str, Schema] = {}
        for own in (*self._schemas.values(), self._default):
            if own is not None:
                self._own[self._compile(own).fingerprint] = own

    def _given(self, schema: _Given) -> Schema:
        try:
            if isinstance(schema, PathLike) or (isinstance(schema, str) and schema.endswith(".avsc")):
                schema = Path(schema).read_text()
            text = schema if isinstance(schema, str) else json.dumps(schema)
            compiled = self._library.Compiled(Schema("avro", text))
        except Exception as error:
            raise ConfigurationError(f"AvroSerializer: the schema cannot be used: {error}") from error
        return Schema("avro", text, compiled.name)

    def _compile(self, schema: Schema) -> Compiled:
        found = self._compiled.get(schema)
        if found is None:
            found = self._compiled[schema] = self._library.Compiled(schema)
            if len(self._compiled) > _MOST:
                self._compiled.popitem(last=False)
        return found

    # --- writing

    def encode(self, value: object) -> tuple[bytes, str]:
        """See `amb_core.serializer.Serializer.encode`."""
        schema = self.schema_of(value)
        if schema is None:
            raise EncodeError(
                f"a {type(value).__name__} does not say its Avro schema: publish an object of a msgspec Struct or a "
                "dataclass, or give AvroSerializer(schema=...), or a broker that keeps schemas for topics"
            )
        compiled = self._compile(schema)
        return self._body(value, compiled), compiled.content_type

    def schema_of(self, value: object) -> Schema | None:
        """See `amb_core.serializer.Described.schema_of`."""
        kind = type(value)
        if kind in self._schemas:
            return self._schemas[kind]
        found = self._derived(kind)
        if found is None and kind in (dict, list):
            self._schemas[kind] = self._default
        return found or self._default

    def _derived(self, cls: type) -> Schema | None:
        if not self._library.has_schema(cls):
            return next((self._schemas[kind] for kind in (str, int, float) if issubclass(cls, kind)), None)
        try:
            schema = self._library.derive(cls)
            found = self._schemas[cls] = Schema("avro", json.dumps(schema), schema["name"])
            self._own[self._compile(found).fingerprint] = found
        except Exception as error:
            raise EncodeError(f"a {cls.__name__} cannot be sent as Avro: {error}") from error
        return found

    def encode_as(self, value: object, schema: Schema) -> bytes:
        """See `amb_core.serializer.Described.encode_as`."""
        try:
            compiled = self._compile(schema)
        except Exception as error:
            raise encode_error("Avro", value, error) from error
        return self._body(value, compiled)

    def _body(self, value: object, compiled: Compiled) -> bytes:
        kind = type(value)
        try:
            if kind is dict or kind in self._library.PLAIN:
                body = self._written(compiled, value)
            else:
                body = compiled.write_object(value, plain)
        except Exception as error:
            raise encode_error(f"Avro ({compiled.name})", value, error) from error
        if len(body) > self._longest:
            raise EncodeError(f"a {kind.__name__} has {len(body)} bytes, max_length is {self._longest}")
        return body

    def _written(self, compiled: Compiled, value: object) -> bytes:
        try:
            return compiled.write(value)
        except Exception as error:
            try:  # objects may be within
                return compiled.write_object(value, plain)
            except Exception:
                raise error from None

    # --- reading

    def decoder(self, type: Any) -> Decoder:
        """See `amb_core.serializer.Serializer.decoder`."""
        self._check(type)
        decoders: dict[str, Callable[[bytes], object]] = {}

        def decode(body: bytes, content_type: str) -> object:
            found = decoders.get(content_type)
            if found is None:
                found = self.decoder_of(self._writer(content_type, type), type)
                if len(decoders) < _MOST:
                    decoders[content_type] = found
            return found(body)

        return decode

    def _writer(self, content_type: str, type: Any) -> Schema:
        """What a message of this content type was written by. Raises: DecodeError."""
        if self._library.is_class(type) and type not in self._schemas:
            self._derived(type)
        said = _WRITTEN_BY.search(content_type)
        if said is not None and said[1] in self._own:
            return self._own[said[1]]
        if said is not None:
            raise DecodeError(f"the payload was written by an Avro schema that is not known here: {said[1]}")
        if ";" in content_type:
            raise DecodeError(
                f"the payload's Avro schema is kept elsewhere ({content_type}): give the broker its schema registry"
            )
        schema = self._given_for.get(type) or self._default
        if schema is None:
            raise DecodeError("the payload does not say its Avro schema: give AvroSerializer(schema=...)")
        return schema

    def decoder_of(self, schema: Schema, type: Any) -> Callable[[bytes], object]:
        """See `amb_core.serializer.Described.decoder_of`."""
        try:
            self._check(type)
            read = self._compile(schema).reader(self._reader(schema, type))
        except Exception as error:
            raise DecodeError(f"the Avro schema {schema.name!r} cannot be read: {error}") from error
        longest, make = self._longest, _maker(type)

        def decode(body: bytes) -> object:
            if len(body) > longest:
                raise ValueError(f"it has {len(body)} bytes, max_length is {longest}")
            return read(body) if make is None else make(read(body))

        guard = guarded(decode, "Avro", type)
        return lambda body: guard(body, _MEDIA_TYPE)

    def _reader(self, writer: Schema, type: Any) -> Compiled | None:
        """The schema to read by, if it is another than the writer's."""
        own = self._given_for.get(type) or (self._default if type in (Any, object, dict) else None)
        if own is None or own == writer:
            return None
        compiled = self._compile(own)
        return compiled if type in self._given_for or compiled.name == self._compile(writer).name else None

    def _check(self, type: Any) -> None:
        if type not in (Any, object):
            check_type(type, "Avro")


def _maker(expected: Any) -> Callable[[Any], object] | None:
    """What makes an object of the handler's type from what was read."""
    if expected in (Any, object):
        return None
    if is_pydantic(expected):
        return pydantic_decoder(expected, json=False)
    return lambda value: msgspec.convert(value, expected, dec_hook=make_custom)
