"""The JetStream stream that keeps the messages, and its API."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from amb_core.errors import ConfigurationError, NoResponders, NotFound, Unavailable

from ._link import Link
from ._wire import NANO

if TYPE_CHECKING:
    from .broker import NatsBroker

__all__ = ["Stream"]

_OLDEST = (2, 10)
#: The first server that drops single messages when their time is over.
_TTL_SINCE = (2, 11)
_ADVICE = "is JetStream on (nats-server -js), and has it a leader?"


class Stream:
    """The stream of the options, and what is done with it."""

    def __init__(self, options: NatsBroker, link: Link) -> None:
        self._options, self._link = options, link
        self.name = options.stream_name
        self.api = f"$JS.{options.domain}.API" if options.domain else "$JS.API"
        #: The server drops single messages when their time is over.
        self.expires = False
        self._subjects = options.stream_subjects or [f"{options.prefix}.>"]
        self._ready = False

    async def start(self) -> None:
        """Return if the server has JetStream, and the stream is there. Raises: ConfigurationError, Unavailable."""
        version = self.version
        if version < _OLDEST:
            raise ConfigurationError(f"JetStream needs a NATS server 2.10 or newer; this is {version[0]}.{version[1]}")
        await self.ask("INFO", None, "use JetStream")
        await self.prepare()

    @property
    def version(self) -> tuple[int, int]:
        """The server's."""
        version = self._link.client.connected_server_version
        return version.major, version.minor

    async def ask(self, verb: str, request: dict[str, Any] | None, doing: str) -> dict[str, Any]:
        """The answer of the JetStream API. Raises: AmbError."""
        try:
            return await self._link.ask(f"{self.api}.{verb}", request, doing)
        except NoResponders:
            raise Unavailable(f"{doing}: JetStream does not answer; {_ADVICE}") from None

    async def prepare(self) -> None:
        """Make the stream, or see that it is as the options want it. Does nothing a second time.

        Raises: ConfigurationError, AccessDenied, Unavailable."""
        if self._ready:
            return
        config = await self._config() or await self._make()
        for name in ("retention", "storage"):
            if config.get(name) != (wanted := getattr(self._options, f"stream_{name}")):
                raise ConfigurationError(
                    f"the stream {self.name!r} exists and has {name} {config.get(name)!r}, not {wanted!r}: "
                    f"set stream_{name}, or use another stream_name"
                )
        if (wishes := self._wishes(config)) or not set(self._subjects) <= set(config.get("subjects", ())):
            subjects = sorted({*config.get("subjects", ()), *self._subjects})
            changed = config | wishes | {"subjects": subjects}
            config = (await self.ask(f"STREAM.UPDATE.{self.name}", changed, f"change the stream {self.name!r}"))[
                "config"
            ]
        self.expires, self._ready = bool(config.get("allow_msg_ttl")), True

    async def info(self) -> dict[str, Any]:
        """What the server knows of the stream: its ``config`` and its ``state``. Raises: NotFound."""
        return await self.ask(f"STREAM.INFO.{self.name}", None, f"look for the stream {self.name!r}")

    async def _config(self) -> dict[str, Any] | None:
        try:
            return dict((await self.info())["config"])
        except NotFound:
            return None

    async def _make(self) -> dict[str, Any]:
        doing = f"make the stream {self.name!r}"
        try:
            return dict((await self.ask(f"STREAM.CREATE.{self.name}", self._asked(), doing))["config"])
        except ConfigurationError:
            # Somebody else may have made it just now.
            if (found := await self._config()) is None:
                raise
            return found

    def forget(self) -> None:
        """The stream may have changed, or gone: look at it again."""
        self._ready = False

    def keeps(self, subjects: Iterable[str], what: str) -> None:
        """Return if the stream can hold something that these match. Raises: NotFound."""
        if not any(_collide(mine, theirs) for mine in self._subjects for theirs in subjects):
            raise NotFound(
                f"{what}: the stream {self.name!r} keeps {', '.join(self._subjects)} and nothing else: "
                "extend stream_subjects"
            )

    def _asked(self) -> dict[str, Any]:
        """How the options want it."""
        options = self._options
        age = int((options.stream_max_age or 0) * NANO)
        window = int(options.duplicate_window * NANO)
        config: dict[str, Any] = {
            "name": self.name,
            "subjects": sorted(self._subjects),
            "retention": options.stream_retention,
            "discard": options.stream_discard or ("old" if options.stream_retention == "limits" else "new"),
            "max_msgs": options.stream_max_msgs or -1,
            "max_bytes": options.stream_max_bytes or -1,
            "max_age": age,
            "num_replicas": options.stream_replicas,
            "storage": options.stream_storage,
            "duplicate_window": min(window, age) if age else window,
        }
        return config | {"allow_msg_ttl": True} if self.version >= _TTL_SINCE else config

    def _wishes(self, found: dict[str, Any]) -> dict[str, Any]:
        """What was asked for and is otherwise in the stream that exists."""
        asked = self._asked()
        given = {
            "discard": self._options.stream_discard,
            "max_msgs": self._options.stream_max_msgs,
            "max_bytes": self._options.stream_max_bytes,
            "max_age": self._options.stream_max_age,
            "num_replicas": self._options.stream_replicas > 1,
            "duplicate_window": self._options.duplicate_window != 120.0,
        }
        return {name: asked[name] for name, value in given.items() if value and asked[name] != found.get(name)}

    # --- consumers

    async def consumer(self, name: str) -> dict[str, Any] | None:
        """What the server knows of a consumer; None: there is none."""
        try:
            return await self.ask(f"CONSUMER.INFO.{self.name}.{name}", None, f"look for the consumer {name!r}")
        except NotFound:
            return None

    async def make_consumer(self, name: str, config: dict[str, Any], what: str) -> dict[str, Any]:
        """Make a consumer, or change it. Raises: AmbError."""
        request: dict[str, Any] = {"stream_name": self.name, "config": {"name": name, **config}}
        verb, several = f"CONSUMER.CREATE.{self.name}.{name}", request["config"].pop("filter_subjects", [])
        if len(several) == 1:
            # So permissions can be given by subject; which only works for one.
            request["config"]["filter_subject"], verb = several[0], f"{verb}.{several[0]}"
        elif several:
            request["config"]["filter_subjects"] = several
        return await self.ask(verb, request, what)

    async def drop_consumer(self, name: str) -> None:
        """Remove a consumer, if it is there."""
        try:
            await self.ask(f"CONSUMER.DELETE.{self.name}.{name}", None, f"remove the consumer {name!r}")
        except NotFound:
            pass

    async def facts(self) -> dict[str, str]:
        """For people: how full the stream is."""
        try:
            state = (await self.info())["state"]
        except NotFound:
            return {"stream": f"{self.name} (not made yet)"}
        return {"stream": f"{self.name}: {state['messages']} messages, {state['bytes']} bytes"}


def _collide(one: str, other: str) -> bool:
    """Whether some subject matches both."""
    for a, b in zip_longest(one.split("."), other.split(".")):
        if a is None or b is None:
            return False
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return True
