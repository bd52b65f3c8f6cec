"""Golden files: one message each, as it travels. ``python -m tests.wire._golden`` writes those that are missing."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import msgspec
from amb_core.broker import Incoming, Outgoing

FOLDER = Path(__file__).parent / "golden"


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """A message on the wire. The body is text where it is UTF-8, else base64."""

    what: str
    topic: str
    headers: dict[str, str]
    key: str | None = None
    body: str | None = None
    body_base64: str | None = None
    #: Headers whose value depends on the moment or on chance: only their form is held fast.
    varies: dict[str, str] = {}

    @property
    def bytes(self) -> bytes:
        return base64.b64decode(self.body_base64 or "") if self.body is None else self.body.encode()

    def outgoing(self, **changed: str) -> Outgoing:
        """The message as a client of any language would send it."""
        priorities = ("critical", "urgent", "high", "normal", "low", "background")
        lane = priorities.index(self.headers.get("amb-priority", "normal"))
        return Outgoing(self.topic, self.bytes, self.headers | changed, self.key, lane)


def load(name: str) -> Golden:
    """The golden file of that name."""
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Golden)


def check(name: str, seen: Incoming) -> None:
    """`seen` is what the golden file says, to the byte."""
    golden = load(name)
    assert seen.topic == golden.topic
    assert seen.key == golden.key
    assert seen.body == golden.bytes
    assert set(seen.headers) == set(golden.headers)
    for header, value in golden.headers.items():
        if header in golden.varies:
            for one in (value, seen.headers[header]):
                assert re.fullmatch(golden.varies[header], one), f"{header}: {one!r}"
        else:
            assert seen.headers[header] == value, header
