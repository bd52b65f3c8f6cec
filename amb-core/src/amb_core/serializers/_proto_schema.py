"""The schema of a protobuf message: the file that declares it, and where in the file it is."""

from __future__ import annotations

import base64
import re
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.message import Message

from ..serializer import Schema

__all__ = ["name_of", "schema_of"]

#: Everybody has these files.
_COMMON = "google/protobuf/"
_WORD = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|[\w.]+|[{};]', re.DOTALL)


def schema_of(cls: type[Message]) -> Schema:
    """What declares the class."""
    descriptor: Any = cls.DESCRIPTOR
    return Schema(
        "protobuf", _text(descriptor.file), descriptor.full_name, _path(descriptor), _imports(descriptor.file)
    )


def _path(descriptor: Any) -> tuple[int, ...]:
    above = descriptor.containing_type
    beside = descriptor.file.message_types_by_name.values() if above is None else above.nested_types
    place = [one.full_name for one in beside].index(descriptor.full_name)
    return (place,) if above is None else (*_path(above), place)


def _imports(file: Any) -> tuple[tuple[str, Schema], ...]:
    return tuple(
        (one.name, Schema("protobuf", _text(one), "", (), _imports(one)))
        for one in file.dependencies
        if not one.name.startswith(_COMMON)
    )


def _text(file: Any) -> str:
    return base64.b64encode(file.serialized_pb).decode()


def name_of(schema: Schema) -> str:
    """The full name of the message that a schema points to. Raises: ValueError if there is none."""
    if schema.name:
        return schema.name
    try:
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(schema.text, validate=True))
        package, declared = file.package, _declared(file.message_type)
    except Exception:  # then it is what people write
        package, declared = _written(schema.text)
    names, path = [package] if package else [], schema.path or (0,)
    for index in path:
        if not 0 <= index < len(declared):
            raise ValueError(f"the schema has no message number {'.'.join(map(str, path))}")
        name, declared = declared[index]
        names.append(name)
    return ".".join(names)


_Declared = list[tuple[str, Any]]


def _declared(messages: Any) -> _Declared:
    return [(one.name, _declared(one.nested_type)) for one in messages]


def _written(text: str) -> tuple[str, _Declared]:
    """The package, and the messages with those in them, of a ``.proto`` file."""
    words = [word for word in _WORD.findall(text) if not word.startswith(("//", "/*", '"', "'"))]
    package, top = "", list[tuple[str, Any]]()
    #: What is open: the messages declared in it. Those of what is no message count for nobody.
    open_: list[_Declared] = [top]
    begins = True
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        if begins and word == "package" and len(open_) == 1:
            package = following
        elif begins and word == "message" and words[index + 2 : index + 3] == ["{"]:
            open_[-1].append((following, []))
        elif word == "{":
            is_message = index > 1 and words[index - 2] == "message" and bool(open_[-1])
            open_.append(open_[-1][-1][1] if is_message else [])
        elif word == "}" and len(open_) > 1:
            open_.pop()
        begins = word in ("{", "}", ";")
    return package, top
