"""Bodies whose schemas the broker keeps: encoded when it has said what they begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec

from ._codec import SCHEMA_ID
from ._leaving import answered
from .broker import Frame, KeepsSchemas
from .errors import Unavailable
from .serializer import Described, Serializer

if TYPE_CHECKING:
    from ._lifecycle import Host
    from .broker import Connection

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Encoded(msgspec.Struct, frozen=True):
    """A payload that needs no encoding any more."""

    body: bytes
    content_type: str


class Framing:
    """Encodes for one bus whose serializer is `Described`. A connection tells whether it keeps schemas."""

    def __init__(self, serializer: Serializer, described: Described, host: Host, timeout: float) -> None:
        self._serializer, self._described, self._host, self._timeout = serializer, described, host, timeout
        self._keeper: tuple[Connection, KeepsSchemas | None] | None = None
        #: As far as is known: false as soon as a connection turns out to keep no schemas.
        self.asks = True

    def encode(self, value: object) -> tuple[bytes, str]:
        """As the serializer, unless the broker was asked before."""
        if type(value) is Encoded:
            return value.body, value.content_type
        return self._serializer.encode(value)

    async def prepare(self, topic: str, value: object) -> object:
        """What to publish to `topic` instead of `value`: its final bytes, if the broker keeps schemas, else itself.

        Blocks for a connection, and, for a schema that is not known yet, until the broker has it, through an outage
        too, at most the publish timeout. Raises: as `KeepsSchemas.frame`, EncodeError."""
        if type(value) is Encoded:
            return value
        if not self._host.ready:
            await self._host.ensure()
        if await self._keeps() is None:
            return value
        pause, failure = _FIRST_PAUSE, None
        with anyio.move_on_after(self._timeout):
            while True:
                try:
                    return await self._framed(topic, value)
                except Unavailable as error:
                    failure = error
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        raise failure or Unavailable(
            f"nothing was published to {topic!r}: its schema could not be had within {self._timeout:g} s; "
            "is what keeps the schemas up and reachable?"
        )

    async def _framed(self, topic: str, value: object) -> object:
        keeper = await self._keeps()
        if keeper is None:
            return value
        schema = self._described.schema_of(value)
        frame: Frame = await answered(keeper.frame(topic, self._described.name, schema))
        content_type = f"{self._serializer.content_type}; {SCHEMA_ID}={frame.id}"
        return Encoded(frame.prefix + self._described.encode_as(value, frame.schema), content_type)

    async def _keeps(self) -> KeepsSchemas | None:
        connection = self._host.connection or await self._host.connection_up(self._timeout)
        if self._keeper is None or self._keeper[0] is not connection:
            keeper = connection if isinstance(connection, KeepsSchemas) else None
            self._keeper, self.asks = (connection, keeper), keeper is not None
        return self._keeper[1]
