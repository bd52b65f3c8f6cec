"""What the library would take, and AMB does not: values that come back as others, and bytes that ask for too much."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args

import msgspec

__all__ = ["checker", "kept_by", "needs_walk", "walk"]

#: Levels of records within records, in writing and in reading.
DEEPEST = 100
#: Items of no length in one body: they cost a sender nothing, and memory here.
MOST_EMPTY = 10_000
#: Bytes of one decimal number; the time to read one grows with the square.
LONGEST_NUMBER = 1_000
_TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"

Named = dict[str, Any]
_KINDS: dict[str, Any] = {
    "null": None,
    "boolean": bool,
    "int": Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    "long": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "float": float,
    "double": float,
    "string": str,
    "bytes": bytes,
}
_AWARE, _NAIVE = (
    Annotated[datetime.datetime, msgspec.Meta(tz=True)],
    Annotated[datetime.datetime, msgspec.Meta(tz=False)],
)
_LOGICAL: dict[str, Any] = {
    "decimal": decimal.Decimal, "uuid": uuid.UUID, "date": datetime.date,
    "time-millis": datetime.time, "time-micros": datetime.time,
    "timestamp-millis": _AWARE, "timestamp-micros": _AWARE,
    "local-timestamp-millis": _NAIVE, "local-timestamp-micros": _NAIVE,
}  # fmt: skip


def _inner(schema: dict[str, Any]) -> list[Any]:
    if schema["type"] in ("record", "error"):
        return [field["type"] for field in schema["fields"]]
    inner = schema.get("items", schema.get("values"))
    return [schema["type"]] if isinstance(schema["type"], dict | list) else [] if inner is None else [inner]


# --- writing


def kept_by(parsed: Any) -> tuple[type, ...]:
    """The types of Python that the schema has a form of its own for: they are not to become text."""
    found: set[type] = {bytes, bytearray}
    waiting = [parsed]
    while waiting:
        schema = waiting.pop()
        if isinstance(schema, list):
            waiting += schema
        elif isinstance(schema, dict):
            if (logical := schema.get("logicalType")) in _LOGICAL:
                found.add(get_args(_LOGICAL[logical])[0] if get_args(_LOGICAL[logical]) else _LOGICAL[logical])
            waiting += _inner(schema)
    return tuple(found)


def checker(parsed: Any, named: Named) -> Callable[[Any], object]:
    """A function that raises for a value that would come back as another. Fields too many are left to the writer."""
    try:
        kind = _Checked(named).of(parsed)
        # A recursive record, and unions of records, are beyond it: then the library's own check, which is slower.
        return lambda value: msgspec.convert(value, kind)
    except TypeError:
        return lambda value: _validated(value, parsed)


def _validated(value: Any, parsed: Any) -> None:
    from fastavro.validation import validate

    _not_deep(value, DEEPEST)
    validate(value, parsed, raise_errors=True)


def _not_deep(value: Any, left: int) -> None:
    if not isinstance(value, Mapping | list | tuple):
        return
    if not left:
        raise ValueError(_TOO_DEEP)
    for item in value.values() if isinstance(value, Mapping) else value:
        _not_deep(item, left - 1)


class _Checked:
    """The type that says to msgspec what a schema says."""

    def __init__(self, named: Named) -> None:
        self._named, self._open = named, set[str]()

    def of(self, schema: Any) -> Any:
        """Raises: TypeError, if there is none."""
        if isinstance(schema, list):
            return Union[tuple(self.of(one) for one in schema)]  # noqa: UP007 - made here, not written
        if isinstance(schema, str):
            return _KINDS[schema] if schema in _KINDS else self.of(self._named[schema])
        kind = schema["type"]
        if (logical := _LOGICAL.get(schema.get("logicalType", ""))) is not None:
            return logical
        if kind in ("record", "error"):
            return self._record(schema)
        if kind == "enum":
            return Literal[tuple(schema["symbols"])]
        if kind == "fixed":
            return Annotated[bytes, msgspec.Meta(min_length=schema["size"], max_length=schema["size"])]
        if kind == "array":
            return list[self.of(schema["items"])]  # type: ignore[misc]
        return dict[str, self.of(schema["values"])] if kind == "map" else self.of(kind)  # type: ignore[misc]

    def _record(self, schema: dict[str, Any]) -> Any:
        name = schema["name"]
        if name in self._open:
            raise TypeError("it contains itself")
        self._open.add(name)
        fields: list[Any] = []
        for number, field in enumerate(schema["fields"]):
            kind = self.of(field["type"])
            may_lack = "default" in field
            given = (Union[kind, msgspec.UnsetType], msgspec.UNSET) if may_lack else (kind, msgspec.NODEFAULT)  # noqa: UP007
            fields.append((f"f{number}", *given))
        self._open.discard(name)
        # A Struct, since msgspec makes one faster than a dict; of names that Python may not take as a field's.
        names = {f"f{number}": field["name"] for number, field in enumerate(schema["fields"])}
        made = msgspec.defstruct("Record", fields, rename=names, kw_only=True, gc=False)
        msgspec.inspect.type_info(made)
        return made


# --- reading


def needs_walk(parsed: Any, named: Named) -> bool:
    """Whether bytes written by the schema could ask for more than they have: deep records, many items of no length,
    long numbers. Most schemas cannot be abused so."""
    return _is_open(parsed, named, ())


def _is_open(schema: Any, named: Named, above: tuple[str, ...]) -> bool:
    if isinstance(schema, list):
        return any(_is_open(one, named, above) for one in schema)
    if isinstance(schema, str):
        return schema in above or (schema in named and _is_open(named[schema], named, above))
    if schema["type"] == "array" and _is_empty(schema["items"], named, above):
        return True
    if schema["type"] == "bytes" and schema.get("logicalType") == "decimal":
        return True
    if "name" in schema:
        above = (*above, schema["name"])
    return any(_is_open(inner, named, above) for inner in _inner(schema))


def _is_empty(schema: Any, named: Named, above: tuple[str, ...]) -> bool:
    """Whether a value may have no bytes at all."""
    if isinstance(schema, str):
        return schema == "null" or (schema in named and schema not in above and _is_empty(named[schema], named, above))
    if isinstance(schema, list):
        return False
    if schema["type"] == "fixed":
        return bool(schema["size"] == 0)
    if schema["type"] in ("record", "error"):
        above = (*above, schema["name"])
        return all(_is_empty(field["type"], named, above) for field in schema["fields"])
    return isinstance(schema["type"], dict | list | str) and schema["type"] == "null"


def walk(parsed: Any, named: Named) -> Callable[[bytes], None]:
    """A function that raises ValueError for bytes that ask for too much. It reads lengths, and builds nothing."""
    return lambda body: _Walk(body, named).value(parsed, DEEPEST)


class _Walk:
    def __init__(self, body: bytes, named: Named) -> None:
        self._body, self._named, self._at, self._empty = body, named, 0, MOST_EMPTY

    def value(self, schema: Any, left: int) -> None:
        """Go past one value. Raises: ValueError."""
        if isinstance(schema, list):
            branch = self._number()
            if not 0 <= branch < len(schema):
                raise ValueError(f"a union of {len(schema)} has no branch {branch}")
            return self.value(schema[branch], left)
        if isinstance(schema, str):
            return self.value(self._named[schema], left) if schema in self._named else self._scalar(schema, None)
        kind = schema["type"]
        if not isinstance(kind, str):
            return self.value(kind, left)
        if kind in ("record", "error"):
            if not left:
                raise ValueError(_TOO_DEEP)
            for field in schema["fields"]:
                self.value(field["type"], left - 1)
        elif kind in ("array", "map"):
            self._items(schema, kind == "map", left)
        else:
            self._scalar(kind, schema)
        return None

    def _scalar(self, kind: str, schema: Any) -> None:
        if kind in ("int", "long", "enum"):
            self._number()
        elif kind in ("string", "bytes"):
            length = self._number()
            is_number = isinstance(schema, dict) and schema.get("logicalType") == "decimal"
            if is_number and length > LONGEST_NUMBER:
                raise ValueError(f"a decimal number has {length} bytes, {LONGEST_NUMBER} is the most")
            self._skip(length)
        else:
            size = {"null": 0, "boolean": 1, "float": 4, "double": 8}.get(kind)
            self._skip(schema["size"] if size is None else size)

    def _items(self, schema: Any, is_map: bool, left: int) -> None:
        if not left:
            raise ValueError(_TOO_DEEP)
        while count := self._number():
            if count < 0:
                count = -count
                self._number()  # the block's length in bytes
            for _ in range(count):
                before = self._at
                if is_map:
                    self._skip(self._number())
                self.value(schema["values" if is_map else "items"], left - 1)
                self._empty -= self._at == before
                if self._empty < 0:
                    raise ValueError(f"it has more than {MOST_EMPTY} items without content")

    def _skip(self, length: int) -> None:
        if not 0 <= length <= len(self._body) - self._at:
            raise ValueError(f"{length} bytes are announced, {len(self._body) - self._at} are left")
        self._at += length

    def _number(self) -> int:
        found = 0
        for shift in range(0, 70, 7):
            if self._at >= len(self._body):
                raise ValueError("it ends within a number")
            byte = self._body[self._at]
            self._at += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (found >> 1) ^ -(found & 1)
        raise ValueError("a number has more than 10 bytes")
