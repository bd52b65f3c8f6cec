"""The contract between AMB and a serializer. This file is all that one needs to know.

A serializer turns a payload into bytes and back. It is a plain object, built once per bus, that holds no
connection and touches no event loop; its methods run in the event loop's thread and must not block. They may be
called concurrently from several threads only if the user gives one object to several buses.

Writing one::

    class CborSerializer:
        name = "cbor"
        content_type = "application/cbor"

        def encode(self, value):
            try:
                return cbor2.dumps(value), self.content_type
            except (cbor2.CBOREncodeError, TypeError) as error:
                raise EncodeError(f"cbor cannot encode {type(value).__name__}: {error}") from error

        def decoder(self, type):
            def decode(body, content_type):
                try:
                    value = cbor2.loads(body)
                    return value if type is Any else msgspec.convert(value, type)
                except (cbor2.CBORDecodeError, msgspec.ValidationError) as error:
                    raise DecodeError(f"not the CBOR that was expected: {error}") from error
            return decode

Give it to a bus as an object, ``MessageBus(serializer=CborSerializer())``, or make it known by name from a
plugin; see ``amb_register_serializers`` in `amb_core.hookspecs`. A registered serializer also decodes what other
buses send with its content types, whatever serializer its own bus uses.

The content type travels with every message in the header ``content-type``; a message without one (a foreign
producer) goes to the decoder of the bus's own serializer. AMB compares the part before ``;``, in lower case;
parameters after it, such as a schema id, are for the serializer alone.

`json_reader` is for backends, which keep headers as JSON where their broker has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import msgspec

__all__ = ["Decoder", "Described", "Schema", "Serializer", "json_reader"]

T = TypeVar("T")

#: ``decode(body, content_type)`` returns the payload, and raises DecodeError only, whatever the bytes are.
Decoder: TypeAlias = Callable[[bytes, str], object]


@runtime_checkable
class Serializer(Protocol):
    """Payload to bytes and back."""

    @property
    def name(self) -> str:
        """What ``MessageBus(serializer=...)`` and ``AMB_SERIALIZER`` call it."""
        ...

    @property
    def content_type(self) -> str:
        """The media type it writes, in lower case."""
        ...

    def encode(self, value: object) -> tuple[bytes, str]:
        """The bytes for `value`, and the content type to put into the message's header.

        Called once per published message: anything that can be prepared belongs into ``__init__``. `value` is
        whatever the user publishes, None included, and must not be changed. Bytes that decode to something
        else than `value` are worse than an error. Raises: EncodeError, naming what cannot be encoded.
        """
        ...

    def decoder(self, type: Any) -> Decoder:
        """A function that decodes into `type`.

        Called once per subscription, so the time to compile the type does not matter; the function it returns
        is called per message. `type` is the annotation of the handler's parameter, or Any for plain values
        (dict, list, str, numbers ...). Every call of the function returns a fresh value that nobody else
        holds. For a type that this serializer cannot make, raise TypeError here: the subscription is refused.
        The function raises DecodeError, and nothing else, for bytes that are damaged or do not fit `type`; its
        text says what was expected and where. Such a message is not retried.
        """
        ...


def json_reader(type: type[T]) -> Callable[[bytes | str], T | None]:
    """A function that reads a `type` from JSON that anybody may have written: None if it is not one, however damaged
    or deep it is. Compile it once; it never raises."""
    decode = msgspec.json.Decoder(type).decode

    def read(text: bytes | str) -> T | None:
        try:
            return decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None

    return read


class Schema(msgspec.Struct, frozen=True):
    """What describes a body; without it, the bytes cannot be read."""

    #: The name of the serializer that reads and writes by it.
    format: str
    #: As the format writes it.
    text: str
    #: What it describes: a full name, or the name of a type. Empty: not known.
    name: str = ""
    #: Where in `text` that is, if it describes several things: the number of the type, then of the one within.
    path: tuple[int, ...] = ()
    #: What `text` refers to, by the names it uses for them.
    references: tuple[tuple[str, Schema], ...] = ()


@runtime_checkable
class Described(Protocol):
    """On a `Serializer`: its bodies are described by a `Schema`, which may be kept elsewhere.

    Where the broker keeps schemas (`amb_core.broker.KeepsSchemas`) the bus calls these instead of ``encode`` and the
    function that ``decoder`` returns. None of them blocks; each is called per message, so keep what takes time,
    in bounded memory.
    """

    @property
    def name(self) -> str:
        """The `Schema.format` of all its schemas."""
        ...

    def schema_of(self, value: object) -> Schema | None:
        """What would describe the body of `value`; None: its type does not say, so what the broker has for the topic
        is to be used. Raises: EncodeError, if nothing could describe it."""
        ...

    def encode_as(self, value: object, schema: Schema) -> bytes:
        """The body of `value`, written by `schema`. Raises: EncodeError, if it does not fit."""
        ...

    def decoder_of(self, schema: Schema, type: Any) -> Callable[[bytes], object]:
        """A function that decodes bodies written by `schema` into `type`; as `Serializer.decoder` otherwise.
        Called once per subscription and schema. Raises: DecodeError, if `schema` or `type` cannot be had."""
        ...
