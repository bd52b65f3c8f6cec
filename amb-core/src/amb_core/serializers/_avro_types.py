"""The Avro schema that a Python type stands for."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect as types

__all__ = ["PLAIN", "derive", "has_schema"]

#: Plain values, by their type.
PLAIN: dict[type, str] = {
    type(None): "null", bool: "boolean", int: "long", float: "double", str: "string", bytes: "bytes",
}  # fmt: skip
_SCALARS: dict[type[types.Type], Any] = {
    types.NoneType: "null",
    types.BoolType: "boolean",
    types.IntType: "long",
    types.FloatType: "double",
    types.StrType: "string",
    types.BytesType: "bytes",
    types.ByteArrayType: "bytes",
    types.DateTimeType: {"type": "long", "logicalType": "timestamp-micros"},
    types.DateType: {"type": "int", "logicalType": "date"},
    types.TimeType: {"type": "long", "logicalType": "time-micros"},
    types.UUIDType: {"type": "string", "logicalType": "uuid"},
    types.DecimalType: "string",  # Avro's own kind needs to know how many digits
}
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def has_schema(cls: type) -> bool:
    """Whether objects of this class say by their type what they consist of."""
    return issubclass(cls, msgspec.Struct) or hasattr(cls, "__dataclass_fields__")


def derive(cls: type) -> dict[str, Any]:
    """The schema of a msgspec Struct or a dataclass: a record of the class's name. Raises: TypeError."""
    found: dict[str, Any] = _Derived().of(types.type_info(cls))
    return found


class _Derived:
    """One schema on its way: the second time, a record is its name."""

    def __init__(self) -> None:
        self._named: dict[str, object] = {}

    def of(self, info: types.Type) -> Any:
        """The schema for what msgspec knows of a type."""
        if isinstance(info, types.Metadata):
            return self.of(info.type)
        if type(info) in _SCALARS:
            return _SCALARS[type(info)]
        if isinstance(info, types.StructType | types.DataclassType):
            return self._once(info.cls, lambda: self._record(info))
        if isinstance(info, types.EnumType):
            return self._enum(info.cls)
        if isinstance(info, types.LiteralType):
            kinds = {type(value) for value in info.values}
            return _one([PLAIN[kind] for kind in kinds if kind in PLAIN], f"Literal{list(info.values)}")
        if isinstance(info, types.UnionType):
            return [self.of(one) for one in sorted(info.types, key=lambda one: not isinstance(one, types.NoneType))]
        if isinstance(info, types.CollectionType | types.VarTupleType):
            return {"type": "array", "items": self.of(info.item_type)}
        if isinstance(info, types.DictType):
            if not isinstance(info.key_type, types.StrType | types.AnyType):
                raise TypeError("the keys of an Avro map are str")
            return {"type": "map", "values": self.of(info.value_type)}
        raise TypeError(
            f"Avro has no form for {type(info).__name__.removesuffix('Type')}: give schemas={{cls: schema}}"
        )

    def _once(self, cls: type, make: Callable[[], Any]) -> Any:
        name = cls.__name__
        if name in self._named:
            if self._named[name] is not cls:
                raise TypeError(f"two classes are called {name}: give schemas={{cls: schema}}")
            return name
        self._named[name] = cls
        return make()

    def _record(self, info: types.StructType | types.DataclassType) -> Any:
        if isinstance(info, types.StructType) and info.array_like:
            raise TypeError(f"{info.cls.__name__} is array_like: Avro's records have names")
        fields = [self._field(field) for field in info.fields]
        if isinstance(info, types.StructType) and info.tag_field is not None:
            fields.insert(0, {"name": info.tag_field, "type": PLAIN[type(info.tag)], "default": info.tag})
        return {"type": "record", "name": _named(info.cls.__name__), "fields": fields}

    def _field(self, field: types.Field) -> dict[str, Any]:
        kind = self.of(field.type)
        made: dict[str, Any] = {"name": _named(field.encode_name), "type": kind}
        default = field.default
        if field.default_factory in (list, dict):
            default = field.default_factory()
        if isinstance(kind, list):
            # A default is of the first kind.
            first = PLAIN.get(type(default))
            if first not in kind:
                return made
            made["type"] = [first, *(one for one in kind if one != first)]
        elif kind != PLAIN.get(type(default)) and not _is_empty(default, kind):
            return made
        return made | {"default": default.decode("latin-1") if isinstance(default, bytes) else default}

    def _enum(self, cls: type[enum.Enum]) -> Any:
        values = [one.value for one in cls]
        if all(isinstance(value, str) and _NAME.fullmatch(value) for value in values):
            return self._once(cls, lambda: {"type": "enum", "name": _named(cls.__name__), "symbols": values})
        return _one([PLAIN[kind] for kind in {type(value) for value in values} if kind in PLAIN], cls.__name__)


def _is_empty(default: object, kind: Any) -> bool:
    return isinstance(kind, dict) and {"array": [], "map": {}}.get(kind["type"]) == default


def _one(kinds: list[str], what: str) -> str:
    if len(kinds) != 1:
        raise TypeError(f"the values of {what} are of different types")
    return kinds[0]


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise TypeError(f"{name!r} is no name in Avro: letters, digits and _")
    return name
