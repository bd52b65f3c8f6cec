"""The filters of rules: SQL, correlation, true and false."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from . import sql
from .entry import Refusal
from .message import Content

#: Whether a message passes.
Filter = Callable[[Content], bool]
MAX_SQL = 1024
_CORRELATION = {
    "correlation-id": "correlation_id", "message-id": "message_id", "to": "to", "reply-to": "reply_to",
    "label": "subject", "session-id": "group_id", "reply-to-session-id": "reply_to_group_id",
    "content-type": "content_type",
}  # fmt: skip


def parse_filter(given: Mapping[str, object]) -> Filter:
    """The filter that ``{"sql": ...}``, ``{"correlation": {...}}``, ``{"true": ...}`` or ``{"false": ...}`` describes.

    Raises: Refusal.
    """
    if "sql" in given:
        return _sql(str(given["sql"]), cast("Mapping[str, object]", given.get("parameters") or {}))
    if "correlation" in given:
        return _correlation(cast("Mapping[str, object]", given["correlation"]))
    if "true" in given:
        return lambda content: True
    if "false" in given:
        return lambda content: False
    raise Refusal("com.microsoft:argument-error", f"A rule has no filter of a kind that is known: {sorted(given)}.")


def _sql(text: str, parameters: Mapping[str, object]) -> Filter:
    if len(text) > MAX_SQL:
        raise Refusal("com.microsoft:argument-error", f"The SQL filter has {len(text)} characters; {MAX_SQL} is most.")
    expression = sql.parse(text, parameters, _SYSTEM)
    return lambda content: expression(_Names(content)) is True


class _Names(sql.Names):
    """The properties of a message, by the names that SQL has for them."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def system(self, name: str) -> object:
        return self._content.properties.get(_SYSTEM[name.lower()])

    def user(self, name: str) -> object:
        return self._content.application_value(name)


_SYSTEM = {name.replace("-", ""): field for name, field in _CORRELATION.items()} | {"subject": "subject"}


def _correlation(given: Mapping[str, object]) -> Correlation:
    wanted = {}
    for name, field in _CORRELATION.items():
        if given.get(name) not in (None, ""):
            wanted[field] = given[name]
    user = cast("Mapping[str, object]", given.get("properties") or {})
    unknown = set(given) - set(_CORRELATION) - {"properties"}
    if unknown or not (wanted or user):
        raise Refusal("com.microsoft:argument-error", f"A correlation filter needs properties that exist: {given}.")

    return Correlation(wanted, user)


class Correlation:
    """A correlation filter: every property that it names has the value that it gives."""

    def __init__(self, wanted: Mapping[str, object], user: Mapping[str, object]) -> None:
        self._wanted, self._user = wanted, user

    def __call__(self, content: Content) -> bool:
        return all(_same(content.properties.get(field), value) for field, value in self._wanted.items()) and all(
            _same(content.application_value(name), value) for name, value in self._user.items()
        )

    def key(self) -> tuple[str, str] | None:
        """A property of the application's and the text it must be, if there is one: rules are found by it."""
        return next(((name, value) for name, value in self._user.items() if isinstance(value, str)), None)


def _same(found: object, wanted: object) -> bool:
    return found is not None and (found == wanted or str(found) == wanted)
