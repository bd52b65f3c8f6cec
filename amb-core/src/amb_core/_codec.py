"""Payload ↔ bytes for one bus: its own serializer, and whichever a message's content type asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ._message import CONTENT_TYPE
from ._plugins import load_serializer, serializer_for_content_type
from .broker import Incoming
from .errors import DecodeError
from .serializer import Serializer


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

        def decode(incoming: Incoming) -> Any:
            content_type = incoming.headers.get(CONTENT_TYPE, own_type)
            if content_type == own_type:
                return own(incoming.body, own_type)
            name = content_type.partition(";")[0].strip().lower()
            found = others.get(name)
            if found is None:
                found = others[name] = _decoder_for(name, own_type, own, type)
            return found(incoming.body, content_type)

        return decode


def _decoder_for(
    name: str, own_type: str, own: Callable[[bytes, str], object], type: Any
) -> Callable[[bytes, str], object]:
    if name == own_type.partition(";")[0]:
        return own
    serializer = serializer_for_content_type(name)
    if serializer is None:
        raise DecodeError(f"no installed serializer reads the content type {name!r}: install the plugin that does")
    return serializer.decoder(type)
