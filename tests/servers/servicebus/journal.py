"""What survives the end of the process: a file to which each change is added before it is confirmed."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

Record = tuple[object, ...]


class Journal:
    """Adds records to a file; without a file it forgets them."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND) if path else -1
        self._pending: list[bytes] = []
        self._replaying = False
        self._encode = msgspec.msgpack.Encoder().encode

    def write(self, *record: object) -> None:
        """Add a record; it is in the file after the next `flush`."""
        if self._path is not None and not self._replaying:
            encoded = self._encode(record)
            self._pending.append(struct.pack(">I", len(encoded)) + encoded)

    def flush(self) -> None:
        """Hand what was written to the system, where it outlives this process."""
        if self._pending:
            data = b"".join(self._pending)
            self._pending.clear()
            while data:
                data = data[os.write(self._file, data) :]

    def read(self) -> Iterator[Record]:
        """The records of the earlier processes. One that was cut off by a kill was never confirmed, and is dropped.

        Nothing is written until `replayed`.
        """
        if self._path is None:
            return
        data = self._path.read_bytes()
        pos = 0
        self._replaying = True
        while pos + 4 <= len(data):
            (size,) = struct.unpack_from(">I", data, pos)
            if pos + 4 + size > len(data):
                break
            yield msgspec.msgpack.decode(data[pos + 4 : pos + 4 + size], type=Record)
            pos += 4 + size
        os.truncate(self._path, pos)

    def replayed(self) -> None:
        """Write again: what `read` gave was done."""
        self._replaying = False
