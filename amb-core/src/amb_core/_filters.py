"""Which messages a handler gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ._message import Message, MessagePriority

#: Fields of a message that a filter may name like headers.
_FIELDS = ("correlation_id", "id", "key", "reply_to", "sender", "topic", "trace_id")


class MessageFilter(msgspec.Struct, frozen=True):
    """Lets through messages that have all the given headers, and whose data has all the given values.

    `headers`: exact values. Where the publisher set no such header, the message's field of that name counts:
    ``priority`` (in any case), ``sender``, ``correlation_id``, ``reply_to``, ``trace_id``, ``key``, ``topic``, ``id``.
    `data_match`: values by name, to any depth: ``{"order": {"state": "paid"}}`` lets through whatever else the
    order holds. Names are looked up as keys of a mapping, else as attributes of a typed payload; values that are
    no mappings must be equal, and True is not 1. A filter with neither lets everything through.
    Messages that are held back are acknowledged and counted, and are no failures.
    Raises: TypeError for headers that are not text, or data_match that is no mapping.
    """

    headers: Mapping[str, str] | None = None
    data_match: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("headers", "data_match"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, Mapping):
                raise TypeError(f"MessageFilter: {name} must be a dict, not {type(given).__name__}")
        # A copy: changing the dict afterwards does not change the filter.
        msgspec.structs.force_setattr(
            self, "headers", {name: _text(name, value) for name, value in (self.headers or {}).items()}
        )
        msgspec.structs.force_setattr(self, "data_match", dict(self.data_match or {}))

    @staticmethod
    def named(name: str, *arguments: Any, **options: Any) -> Callable[[Message], bool]:
        """The filter that a plugin registered as `name`, made with the given arguments; ``match`` is this class.

        Raises: PluginError if there is none of that name, or if it cannot be made of these arguments.
        """
        from ._plugins import load_filter

        return load_filter(name, *arguments, **options)

    @property
    def headers_only(self) -> bool:
        """It can be decided before the data is decoded."""
        return not self.data_match

    def __call__(self, message: Message) -> bool:
        """Whether the handler gets `message`."""
        if self.headers:
            given = message.headers
            for name, value in self.headers.items():
                found = given[name] if name in given else _field(message, name)
                if found != value and not (name == "priority" and found and found.lower() == value.lower()):
                    return False
        return not self.data_match or _has(message.data, self.data_match)


def _text(name: str, value: object) -> str:
    if isinstance(value, MessagePriority):
        return value.name.lower()
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"MessageFilter: headers are text; {name!r} has a {type(value).__name__}")
    return value


def _field(message: Message, name: str) -> str | None:
    if name == "priority":
        return message.priority.name
    return getattr(message, name) if name in _FIELDS else None


def _has(data: Any, wanted: Mapping[str, Any]) -> bool:
    return all(_equals(_get(data, name), value) for name, value in wanted.items())


_MISSING = object()


def _get(data: Any, name: str) -> Any:
    return data.get(name, _MISSING) if isinstance(data, Mapping) else getattr(data, name, _MISSING)


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return value is not _MISSING and _has(value, wanted)
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)
