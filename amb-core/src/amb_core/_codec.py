"""Payload ↔ bytes for one bus: its own serializer, and whichever a message's content type asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ._message import CONTENT_TYPE
from ._plugins import load_serializer, serializer_for_content_type
from .broker import Framed, Incoming
from .errors import DecodeError, PluginError
from .serializer import Described, Schema, Serializer

#: The parameter of a content type that says: the body is framed, and its schema is kept by the broker.
SCHEMA_ID = "schema-id"
#: So many schemas have their decoders kept, per subscription.
_MOST = 256


class Codec:
    """Encodes with one serializer; decodes what any installed one has made."""

    def __init__(self, serializer: str | Serializer | None) -> None:
        if serializer is None:
            serializer = os.environ.get("AMB_SERIALIZER") or "json"
        self.serializer: Serializer = load_serializer(serializer) if isinstance(serializer, str) else serializer
        if not isinstance(self.serializer, Serializer):
            raise TypeError(
                f"serializer must be a name such as 'json', or an object as amb_core.serializer.Serializer describes, "
                f"not {type(serializer).__name__}"
            )

    def decoder(self, type: Any) -> Callable[[Incoming], Any]:
        """A function that decodes a delivery's body into `type`; made once per subscription. It raises
        DecodeError only. Without a content type (a foreign producer) the bus's own serializer decides."""
        own_type, own = self.serializer.content_type, self.serializer.decoder(type)
        others: dict[str, Callable[[bytes, str], object]] = {}
        described: dict[Schema, Callable[[bytes], object]] = {}

        def decode(incoming: Incoming) -> Any:
            if incoming.framed is not None and self._is_framed(incoming, incoming.framed):
                return self._by_schema(incoming.framed, described, type)(incoming.body[incoming.framed.start :])
            content_type = incoming.headers.get(CONTENT_TYPE, own_type)
            if content_type == own_type:
                return own(incoming.body, own_type)
            name = content_type.partition(";")[0].strip().lower()
            found = others.get(name)
            if found is None:
                found = others[name] = _decoder_for(name, own_type, own, type)
            return found(incoming.body, content_type)

        return decode

    def _is_framed(self, incoming: Incoming, framed: Framed) -> bool:
        """Whether the schema decides; else the body may be one of another serializer, and nobody's frame."""
        return (
            framed.schema is not None
            or isinstance(self.serializer, Described)
            or SCHEMA_ID in incoming.headers.get(CONTENT_TYPE, "")
        )

    def _by_schema(
        self, framed: Framed, known: dict[Schema, Callable[[bytes], object]], type: Any
    ) -> Callable[[bytes], object]:
        schema = framed.schema
        if schema is None:
            raise DecodeError(framed.problem)
        found = known.get(schema)
        if found is None:
            found = self._described(schema.format).decoder_of(schema, type)
            if len(known) < _MOST:
                known[schema] = found
        return found

    def _described(self, format: str) -> Described:
        own = self.serializer
        if own.name != format:
            try:
                own = load_serializer(format)
            except PluginError as error:
                raise DecodeError(f"a schema in the format {format!r} cannot be read: {error}") from error
        if not isinstance(own, Described):
            raise DecodeError(f"no installed serializer reads schemas in the format {format!r}")
        return own


def _decoder_for(
    name: str, own_type: str, own: Callable[[bytes, str], object], type: Any
) -> Callable[[bytes, str], object]:
    if name == own_type.partition(";")[0]:
        return own
    serializer = serializer_for_content_type(name)
    if serializer is None:
        raise DecodeError(f"no installed serializer reads the content type {name!r}: install the plugin that does")
    try:
        return serializer.decoder(type)
    except TypeError as error:  # the handler's type is one that only its own bus's serializer makes
        raise DecodeError(f"the content type {name!r} is not what the handler takes: {error}") from error
