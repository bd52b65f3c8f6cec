"""Elections: a stream of its own keeps one message for each name that is held, and drops it when its time is over."""

from __future__ import annotations

import base64
from math import ceil
from typing import TYPE_CHECKING, Any

import msgspec
from amb_core.errors import ConfigurationError, NotFound, Unavailable, UnsupportedError

from ._errors import api_error
from ._link import Link, status
from ._stream import Stream
from ._wire import Names

if TYPE_CHECKING:
    from .broker import NatsBroker

__all__ = ["Elections"]

#: The first server that drops single messages when their time is over.
_SINCE = (2, 11)
#: The server's code for "somebody else was faster".
_WRONG_SEQUENCE = 10071


class Elections:
    """What `amb_core.broker.Elects` says, on JetStream. Who holds a name has stored the subject's only message; its
    sequence number is the token, and the body of those that prolong it."""

    def __init__(self, options: NatsBroker, link: Link, stream: Stream | None, names: Names) -> None:
        self._options, self._link, self._stream, self._names = options, link, stream, names
        self._name = f"{options.stream_name}_ELECTIONS"
        self._ready = False

    async def acquire(self, name: str, seconds: float) -> int | None:
        """The token, if nobody holds `name`."""
        return await self._put(name, b"", 0, seconds, f"elect a leader of {name!r}")

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """Whether `token` held it until now, and does from now on."""
        doing = f"stay the leader of {name!r}"
        last = await self._last(name, token, doing)
        return last is not None and await self._put(name, b"%d" % token, last, seconds, doing) is not None

    async def release(self, name: str, token: int) -> None:
        """Nobody holds it, if `token` did."""
        doing = f"resign from {name!r}"
        last = await self._last(name, token, doing)
        if last is not None:
            try:
                await self._ask("MSG.DELETE", {"seq": last, "no_erase": True}, doing)
            except NotFound:
                pass

    async def _put(self, name: str, body: bytes, after: int, seconds: float, doing: str) -> int | None:
        """Store it for whole seconds, rounded up, if `after` is the last of its subject; returns its number."""
        await self._prepare(doing)
        headers = f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {after}\r\nNats-TTL: {ceil(seconds)}s\r\n\r\n"
        message = await self._link.exchange(self._subject(name), body, doing, headers.encode())
        if status(message) is not None:
            self._ready = False
            raise Unavailable(f"{doing}: the stream {self._name!r} has no leader at the moment")
        ack: dict[str, Any] = msgspec.json.decode(message.data)
        if (error := ack.get("error")) is None:
            return int(ack["seq"])
        if error.get("err_code") == _WRONG_SEQUENCE:
            return None
        raise api_error(error, doing)

    async def _last(self, name: str, token: int, doing: str) -> int | None:
        """The number of the subject's message, if it is of `token`."""
        await self._prepare(doing)
        try:
            found = (await self._ask("MSG.GET", {"last_by_subj": self._subject(name)}, doing))["message"]
        except NotFound:
            return None
        holder = int(base64.b64decode(found.get("data", "")) or found["seq"])
        return int(found["seq"]) if holder == token else None

    def _subject(self, name: str) -> str:
        return f"amb-elections.{self._options.stream_name}.{self._names.subject(name)}"

    async def _ask(self, verb: str, request: dict[str, Any], doing: str) -> dict[str, Any]:
        assert self._stream is not None
        return await self._stream.ask(f"STREAM.{verb}.{self._name}", request, doing)

    async def _prepare(self, doing: str) -> None:
        """Make the stream, once. Raises: UnsupportedError, ConfigurationError, AccessDenied, Unavailable."""
        if self._ready:
            return
        if self._stream is None:
            raise UnsupportedError(f"{doing}: core NATS keeps nothing that could be held: jetstream=True does")
        if self._stream.version < _SINCE:
            raise ConfigurationError(f"{doing}: that needs a NATS server 2.11 or newer")
        await self._ask("CREATE", self._config(), doing)
        self._ready = True

    def _config(self) -> dict[str, Any]:
        # Equal for everybody whose options are equal: making it again does nothing.
        return {
            "name": self._name,
            "subjects": [f"amb-elections.{self._options.stream_name}.>"],
            "max_msgs_per_subject": 1,
            "allow_msg_ttl": True,
            "num_replicas": self._options.stream_replicas,
            "storage": self._options.stream_storage,
        }
