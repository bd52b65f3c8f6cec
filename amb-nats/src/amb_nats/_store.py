"""Publishing into the stream: in one go, each message acknowledged by the server."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

import msgspec
from amb_core.broker import Outgoing
from amb_core.errors import AccessDenied, AmbError, ConfigurationError, NotFound, Unavailable
from nats.aio.msg import Msg

from ._errors import api_error
from ._link import Link, status
from ._stream import Stream
from ._wire import NOT_BEFORE, Names, message_id, to_headers, too_large

__all__ = ["Store"]

#: Seconds that the server keeps what has expired, so that a consumer that is there counts it or makes a dead letter.
_GRACE = 5


class _Ack(msgspec.Struct):
    stream: str = ""
    error: dict[str, object] | None = None


_ack = msgspec.json.Decoder(_Ack).decode


class Store:
    """Puts messages into a stream."""

    def __init__(self, link: Link, stream: Stream, names: Names) -> None:
        self._link, self._stream, self._names = link, stream, names

    async def send(self, batch: Sequence[Outgoing], chosen: Sequence[int]) -> dict[int, AmbError]:
        """Store the chosen ones. Returns what failed, by index. Raises: AmbError for all."""
        errors: dict[int, AmbError] = {}
        await self._stream.prepare()
        homeless = await self._store(batch, chosen, errors)
        if homeless:
            # Somebody has changed the stream behind our back, or removed it.
            self._stream.forget()
            await self._stream.prepare()
            for i in await self._store(batch, homeless, errors):
                errors[i] = self._homeless(batch[i])
        return errors

    def _homeless(self, message: Outgoing) -> AmbError:
        doing = f"publish to {message.topic!r}"
        try:
            self._stream.keeps([self._names.subject(message.topic)], doing)
        except NotFound as error:
            return error
        return Unavailable(f"{doing}: the stream {self._stream.name!r} has no leader at the moment")

    async def _store(self, batch: Sequence[Outgoing], chosen: Sequence[int], errors: dict[int, AmbError]) -> list[int]:
        """Write all, then wait for all. Returns those that no stream wanted."""
        waiting: dict[int, tuple[str, asyncio.Future[Msg]]] = {}
        homeless = []
        try:
            for i in chosen:
                if (error := await self._write(i, batch[i], waiting)) is not None:
                    errors[i] = error
            await self._link.client.push()
            for i, (_, answer) in waiting.items():
                try:
                    message = await self._link.answer(answer, f"publish to {batch[i].topic!r}", unknown=True)
                except AccessDenied as error:
                    errors[i] = error
                    continue
                if status(message) is not None:
                    homeless.append(i)
                elif (refusal := self._refusal(batch[i], message)) is not None:
                    errors[i] = refusal
        finally:
            for box, answer in waiting.values():
                self._link.forget(box, answer)
        return homeless

    async def _write(
        self, index: int, message: Outgoing, waiting: dict[int, tuple[str, asyncio.Future[Msg]]]
    ) -> AmbError | None:
        extra: dict[str, str] = {}
        if (id := message_id(message)) is not None:
            extra["Nats-Msg-Id"] = id
        if message.expires is not None and self._stream.expires:
            extra["Nats-TTL"] = f"{max(0, math.ceil(message.expires - time.time())) + _GRACE}s"
        if message.not_before is not None:
            extra[NOT_BEFORE] = repr(message.not_before)
        headers = to_headers(message, extra)
        client = self._link.client
        if (error := too_large(message, headers, client.max_payload)) is not None:
            return error
        name = self._names.subject(message.topic)
        waiting[index] = box, _ = self._link.expect(name)
        await self._link.call(f"publish to {message.topic!r}", client.post(name, message.body, box, headers, more=True))
        return None

    def _refusal(self, message: Outgoing, reply: Msg) -> AmbError | None:
        doing = f"publish to {message.topic!r}"
        ack = _ack(reply.data)
        if ack.error is not None:
            return api_error(ack.error, doing)
        if ack.stream != self._stream.name:
            return ConfigurationError(
                f"{doing}: the stream {ack.stream!r} has taken it, not {self._stream.name!r}: "
                "name it in stream_name, or set stream_subjects"
            )
        return None
