"""Protocol Buffers: typed messages, small on the wire. Needs the extra ``amb-core[protobuf]``, from construction on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from os import PathLike
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import ConfigurationError, DecodeError, EncodeError, PluginError
from ..serializer import Decoder, Schema
from ._shared import encode_error, type_name

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ._proto import Types

__all__ = ["ProtobufSerializer"]

_MEDIA_TYPE = "application/protobuf"
#: ``proto`` as Prometheus writes it; ``messageType`` as Spring does.
_NAME = re.compile(r';\s*(?:proto|messagetype)\s*=\s*"?([\w.]+)', re.IGNORECASE)
#: What clients of protobuf in all languages have as their default.
_LONGEST = 64 * 1024 * 1024
#: The most content types a decoder remembers: strangers choose them.
_MOST = 256
_CLASS = type
_PLAIN = (None, NoneType, bool, int, float, str, bytes)
_Parse: TypeAlias = Callable[[bytes], object]


class ProtobufSerializer:
    """Payloads as Protocol Buffers; the name of the type travels, as in ``application/protobuf; proto=shop.Order``.

    Publish an object of a generated class. A handler annotated with the class gets the object; one without gets
    an object of the type that the message names, among `types`, what `proto_path` has, and the generated classes
    that the program has imported. A type that is not among them, or not the annotated one, is a DecodeError.

    `proto_path`: a ``.proto`` file, or a folder of them with all below it, compiled here and now with
    ``grpcio-tools`` (some tenths of a second; the files' folder is left as it is); `message_type` has the classes.
    `default_message_type`: what a message without a name is decoded as, and what a dict is sent as; a class,
    or a name, with or without its package. `types`: generated classes that messages may name.

    None, bool, int (64 bits), float, str and bytes travel as protobuf's own wrapper types and come back plain.
    `max_length`: the longest body in bytes, when writing and when reading. Messages within messages are read up
    to 100 levels deep, protobuf's own limit. Raises: PluginError without the extra, ConfigurationError.
    """

    name = "protobuf"
    content_type = _MEDIA_TYPE

    def __init__(
        self,
        proto_path: str | PathLike[str] | None = None,
        default_message_type: str | type[Message] | None = None,
        *,
        types: Iterable[type[Message]] = (),
        max_length: int = _LONGEST,
    ) -> None:
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
            raise ConfigurationError(f"ProtobufSerializer: max_length must be a number of bytes, not {max_length!r}")
        try:
            from . import _proto, _proto_schema
        except ImportError as error:
            raise PluginError("protobuf is not installed: pip install 'amb-core[protobuf]'") from error
        self._message, self._longest = _proto.Message, max_length
        self._types: Types = _proto.Types(proto_path, types, default_message_type)
        self._wrap, self._parse_plain, self._plain_type = _proto.wrap, _proto.plain, _proto.plain_type
        self._schema_of, self._name_of = _proto_schema.schema_of, _proto_schema.name_of
        self._schemas: dict[type, Schema] = {}
        #: Content types by class.
        self._written: dict[type, str] = {}

    def message_type(self, name: str) -> type[Message]:
        """The class of a type, with or without its package, such as one that `proto_path` has.
        Raises: ConfigurationError if there is none."""
        return self._types.named(name)

    def encode(self, value: object) -> tuple[bytes, str]:
        """See `amb_core.serializer.Serializer.encode`."""
        try:
            if type(value) not in self._written:
                value = self._as_message(value)
            body: bytes = value.SerializeToString()  # type: ignore[attr-defined]
        except Exception as error:
            raise encode_error("protobuf", value, error) from error
        if len(body) > self._longest:
            raise EncodeError(f"a {type(value).__name__} has {len(body)} bytes, max_length is {self._longest}")
        return body, self._written[type(value)]

    def schema_of(self, value: object) -> Schema:
        """See `amb_core.serializer.Described.schema_of`."""
        found = self._schemas.get(type(value))
        if found is not None:
            return found
        try:
            cls = type(value) if isinstance(value, self._message) else type(self._made(value))
            if cls not in self._schemas:
                self._schemas[cls] = self._schema_of(cls)
        except Exception as error:
            raise encode_error("protobuf", value, error) from error
        return self._schemas[cls]

    def encode_as(self, value: object, schema: Schema) -> bytes:
        """See `amb_core.serializer.Described.encode_as`."""
        return self.encode(value)[0]

    def decoder_of(self, schema: Schema, type: Any) -> Callable[[bytes], object]:
        """See `amb_core.serializer.Described.decoder_of`."""
        try:
            decode, content_type = self.decoder(type), f"{_MEDIA_TYPE}; proto={self._name_of(schema)}"
        except (TypeError, ValueError) as error:
            raise DecodeError(f"the protobuf schema {schema.name!r} cannot be read: {error}") from error
        return lambda body: decode(body, content_type)

    def _as_message(self, value: object) -> Message:
        message = value if isinstance(value, self._message) else self._made(value)
        self._written[type(message)] = f"{_MEDIA_TYPE}; proto={message.DESCRIPTOR.full_name}"
        return message

    def _made(self, value: object) -> Message:
        if not isinstance(value, dict):
            return self._wrap(value)
        if self._types.default is None:
            raise TypeError("a dict needs default_message_type, which says what it is")
        return self._types.default(**value)

    def decoder(self, type: Any) -> Decoder:
        """See `amb_core.serializer.Serializer.decoder`."""
        if type in (Any, object, self._message):
            return self._decoder(self._any)
        if isinstance(type, _CLASS) and issubclass(type, self._message):
            return self._decoder(self._exactly(type))
        if type in _PLAIN:
            return self._decoder(self._plain(type))
        raise TypeError(
            f"protobuf cannot be decoded into {type_name(type)}: annotate the handler with a generated class, "
            "None, bool, int, float, str, bytes, or Message"
        )

    def _decoder(self, choose: Callable[[str | None], _Parse]) -> Decoder:
        """A decoder that parses as `choose` says for the type's name in the content type."""
        chosen: dict[str, _Parse] = {}
        longest = self._longest

        def decode(body: bytes, content_type: str) -> object:
            parse = chosen.get(content_type)
            if parse is None:
                found = _NAME.search(content_type)
                parse = choose(None if found is None else found[1])
                if len(chosen) < _MOST:
                    chosen[content_type] = parse
            if len(body) > longest:
                raise DecodeError(f"the payload has {len(body)} bytes, max_length is {longest}")
            try:
                return parse(body)
            # What protobuf raises for damaged bytes depends on its implementation.
            except Exception as error:
                raise DecodeError(f"the payload is not valid protobuf: {error}") from error

        return decode

    def _any(self, name: str | None) -> _Parse:
        cls = self._types.sent(name)
        return self._parse_plain(cls) or cls.FromString

    def _exactly(self, cls: type[Message]) -> Callable[[str | None], _Parse]:
        expected = cls.DESCRIPTOR.full_name

        def choose(name: str | None) -> _Parse:
            if name in (None, expected):
                return cls.FromString
            raise DecodeError(f"the payload is a {name}, not the expected {expected}")

        return choose

    def _plain(self, type: Any) -> Callable[[str | None], _Parse]:
        def choose(name: str | None) -> _Parse:
            cls = self._types.sent(name)
            parse = self._parse_plain(cls)
            if parse is None or self._plain_type(cls) is not (type or NoneType):
                raise DecodeError(f"the payload is a {cls.DESCRIPTOR.full_name}, not the expected {type_name(type)}")
            return parse

        return choose
