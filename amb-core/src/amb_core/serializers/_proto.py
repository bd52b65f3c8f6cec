"""Which protobuf types there are: generated classes, compiled files, and the wrappers of plain values."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import NoneType

from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory, wrappers_pb2
from google.protobuf.message import Message

from .._advice import did_you_mean
from ..errors import ConfigurationError, DecodeError

__all__ = ["Message", "Types", "plain", "plain_type", "wrap"]

_WRAPPERS: dict[type, Callable[..., Message]] = {
    bool: wrappers_pb2.BoolValue,
    int: wrappers_pb2.Int64Value,
    float: wrappers_pb2.DoubleValue,
    str: wrappers_pb2.StringValue,
    bytes: wrappers_pb2.BytesValue,
}
#: What is plain in Python, by the names of protobuf's types for it.
_PLAIN: dict[str, type] = {"google.protobuf.Empty": NoneType} | {
    f"google.protobuf.{name}Value": kind
    for kind, names in {
        bool: ("Bool",),
        int: ("Int32", "Int64", "UInt32", "UInt64"),
        float: ("Float", "Double"),
        str: ("String",),
        bytes: ("Bytes",),
    }.items()
    for name in names
}


def wrap(value: object) -> Message:
    """The protobuf message that stands for a plain value. Raises: TypeError, ValueError."""
    if value is None:
        return empty_pb2.Empty()
    for kind, wrapper in _WRAPPERS.items():
        if isinstance(value, kind):
            return wrapper(value=value)
    raise TypeError("publish an object of a generated class, or a plain value")


def plain_type(cls: type[Message]) -> type | None:
    """The plain type that the class stands for, if any."""
    return _PLAIN.get(cls.DESCRIPTOR.full_name)


def plain(cls: type[Message]) -> Callable[[bytes], object] | None:
    """How to parse what `wrap` makes back into a plain value; None: the class stands for none."""
    parse = cls.FromString
    if plain_type(cls) is None:
        return None
    return lambda body: getattr(parse(body), "value", None)


class Types:
    """The types that a serializer knows by name."""

    def __init__(
        self,
        path: str | PathLike[str] | None,
        classes: Iterable[type[Message]],
        default: str | type[Message] | None,
    ) -> None:
        self._known: dict[str, type[Message]] = {}
        self._pools = [descriptor_pool.Default()]
        if path is not None:
            self._pools.insert(0, descriptor_pool.DescriptorPool())
            self._known |= _compiled(Path(path), self._pools[0])
        for cls in classes:
            if not (isinstance(cls, type) and issubclass(cls, Message)):
                raise ConfigurationError(f"ProtobufSerializer: types must be generated classes, not {cls!r}")
            self._known[cls.DESCRIPTOR.full_name] = cls
        self._default = self.named(default) if isinstance(default, str) and self._known else default
        if isinstance(self._default, type) and issubclass(self._default, Message):
            self._known.setdefault(self._default.DESCRIPTOR.full_name, self._default)
        elif not (self._default is None or isinstance(self._default, str)):
            raise ConfigurationError(
                f"ProtobufSerializer: default_message_type must be a generated class or a name, not {default!r}"
            )

    @property
    def default(self) -> type[Message] | None:
        """The default type. One that was only named may be imported later than the serializer is made.
        Raises: ConfigurationError."""
        if isinstance(self._default, str):
            self._default = self.named(self._default)
        return self._default

    def named(self, name: str) -> type[Message]:
        """The class of a type by its name, with or without package. Raises: ConfigurationError."""
        found = self._seek(name)
        short = [cls for full, cls in self._known.items() if full.rpartition(".")[2] == name]
        if found is None and len(short) == 1:
            found = short[0]
        if found is None:
            advice = did_you_mean(name, self._known) or ": import its generated class, or give proto_path"
            raise ConfigurationError(f"no protobuf type {name!r} is known{advice}")
        return found

    def sent(self, name: str | None) -> type[Message]:
        """The class for the name that a message came with; None: it has none. Raises: DecodeError."""
        try:
            found = self.default if name is None else self._seek(name)
        except ConfigurationError as error:
            raise DecodeError(f"the payload does not say which protobuf type it is, and {error}") from error
        if found is not None:
            return found
        if name is None:
            raise DecodeError(
                "the payload does not say which protobuf type it is: annotate the handler, "
                "or give ProtobufSerializer a default_message_type"
            )
        raise DecodeError(
            f"no protobuf type {name!r} is known: import its generated class, or give ProtobufSerializer its "
            ".proto file or its class"
        )

    def _seek(self, name: str) -> type[Message] | None:
        if name in self._known:
            return self._known[name]
        for pool in self._pools:
            with suppress(KeyError):
                return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        return None


def _compiled(path: Path, pool: descriptor_pool.DescriptorPool) -> dict[str, type[Message]]:
    """The classes of one file, or of all below a folder, made in the pool. Raises: ConfigurationError."""
    folder, files = (path.parent, [path]) if path.is_file() else (path, sorted(path.rglob("*.proto")))
    if not files:
        raise ConfigurationError(f"ProtobufSerializer: proto_path {str(path)!r} has no .proto files")
    found = descriptor_pb2.FileDescriptorSet.FromString(_described(folder, files))
    for file in found.file:
        pool.Add(file)
    own = [file.name for file in found.file if not file.name.startswith("google/protobuf/")]
    return dict(message_factory.GetMessageClassesForFiles(own, pool))


def _described(folder: Path, files: list[Path]) -> bytes:
    """What the compiler makes of the files, and of those they import: serialized descriptors."""
    with tempfile.TemporaryDirectory(prefix="amb-proto-") as private:
        out = Path(private, "descriptors")
        # A process of its own: the compiler writes to the standard error of the one it runs in.
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={folder}", "--include_imports"]
        names = [str(file) for file in files]
        done = subprocess.run(
            [*command, f"--descriptor_set_out={out}", *names], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ConfigurationError(f"ProtobufSerializer: {folder} does not compile: {_reason(done.stderr)}")
        return out.read_bytes()


def _reason(text: str) -> str:
    if "No module named" in text:
        return "grpcio-tools is not installed: pip install 'amb-core[protobuf]'"
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
