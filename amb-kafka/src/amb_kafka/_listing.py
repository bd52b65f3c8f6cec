"""The question which topics there are, and its answer without what nobody here asks for.

Whoever looks for new topics asks every second, and a cluster may have thousands. aiokafka takes the whole answer apart,
replica by replica; here only names and numbers of partitions are read, in a tenth of the time.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.metadata import MetadataRequest_v5

__all__ = ["Listing"]

_NUMBER, _LENGTH, _TOPIC = struct.Struct(">i"), struct.Struct(">h"), struct.Struct(">hh")
#: What stands before a partition's replicas, and how many lists of them there are: all, in sync, offline.
_BEFORE, _LISTS = 10, (0, 1, 2)


class Listing:
    """A request, as aiokafka's client sends it. What comes back is the number of partitions of each topic without an
    error. Servers do not make topics because of it."""

    def __init__(self, names: list[str] | None) -> None:
        self._names = names

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Any:
        """Of the version whose answer can be read here; every supported server knows it."""
        low, high = versions[MetadataRequest_v5.API_KEY]
        if not low <= MetadataRequest_v5.API_VERSION <= high:
            raise IncompatibleBrokerVersion(f"the server takes metadata requests of versions {low} to {high}")
        request: Any = MetadataRequest_v5(self._names, False)
        request.RESPONSE_TYPE = _Answer
        return request


class _Answer:
    @staticmethod
    def decode(data: BinaryIO) -> dict[str, int]:
        """Read the rest of a response: throttle time, servers, cluster, controller, topics."""
        view = data.read()
        (servers,), at = _NUMBER.unpack_from(view, 4), 8
        for _ in range(servers):
            at = _text(view, _text(view, at + 4) + 4)
        at = _text(view, at) + 4
        found, (topics,) = dict[str, int](), _NUMBER.unpack_from(view, at)
        at += 4
        for _ in range(topics):
            code, length = _TOPIC.unpack_from(view, at)
            name, at = view[at + 4 : at + 4 + length], at + 4 + length + 1
            (partitions,) = _NUMBER.unpack_from(view, at)
            at = _after(view, at + 4, partitions)
            if not code:
                found[name.decode()] = partitions
        return found


def _text(view: bytes, at: int) -> int:
    """Where a text ends, that may be missing."""
    return at + 2 + max(0, int(_LENGTH.unpack_from(view, at)[0]))


def _after(view: bytes, at: int, partitions: int) -> int:
    """Where so many partitions end."""
    number = _NUMBER.unpack_from
    for _ in range(partitions):
        at += _BEFORE
        for _ in _LISTS:
            at += 4 + 4 * number(view, at)[0]
    return at
