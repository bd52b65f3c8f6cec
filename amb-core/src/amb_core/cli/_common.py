"""What the commands share: the broker options, payloads in, messages out."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

import anyio
import click
import msgspec

from .. import Message, MessageBus, MessagePriority
from .._advice import did_you_mean
from ..broker import Broker
from ._exit import debugging
from ._signals import graceful

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
PRIORITIES = click.Choice([member.name.lower() for member in MessagePriority], case_sensitive=False)


def SECONDS(value: Any) -> float:
    """A positive, finite number of seconds. Raises: click.BadParameter."""
    try:
        seconds = float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number of seconds") from None
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{value} must be above 0 seconds")
    return seconds


class Where(msgspec.Struct, frozen=True):
    """Which broker a command talks to."""

    broker: str | None
    url: str | None
    connect_timeout: float

    def bus(self, **settings: Any) -> MessageBus:
        """An unconnected bus. Says in one line on stderr when other processes cannot see what it does."""
        log_from(logging.ERROR)  # what fails is said by the command, in one line
        bus = MessageBus(
            self.broker, broker_url=self.url, connect_timeout=self.connect_timeout, sender="amb-cli", **settings
        )
        if bus.capabilities.single_process:
            note("this broker lives inside one process, so other programs neither see nor answer this; "
                 "name a real one with --broker, --url or AMB_BROKER")  # fmt: skip
        return bus


def hand_down(broker: str | None, url: str | None) -> None:
    """Let further processes find the same broker. Not by their command lines: a URL may hold a password."""
    if url or broker:
        os.environ["AMB_BROKER"] = url or broker or ""


def describe(broker: Broker) -> str:
    """A broker for people: its class, and where it is."""
    from ..config import mask_url

    for name in getattr(broker, "__struct_fields__", ()):
        value = getattr(broker, name)
        if isinstance(value, str) and "://" in value:
            return f"{type(broker).__name__} at {mask_url(value)}"
    return type(broker).__name__


def broker_options(command: F) -> F:
    """Add --broker, --url and --connect-timeout; the command gets them as `where`."""

    @functools.wraps(command)
    def call(*, broker: str | None, url: str | None, connect_timeout: float, **rest: Any) -> Any:
        return command(where=Where(broker, url, connect_timeout), **rest)

    options = (
        click.option("--broker", metavar="NAME", help="Broker name or URL.  [default: AMB_BROKER, else memory]"),
        click.option("--url", metavar="URL", help="Where the broker is.  [default: the broker's AMB_… variable]"),
        click.option("--connect-timeout", metavar="S", type=SECONDS, default=5.0, show_default=True,
                     help="Seconds to keep trying to connect."),
    )  # fmt: skip
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), call)  # type: ignore[return-value]


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


def examples(*lines: str) -> str:
    """An epilog of worked examples that click does not re-wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class Suggesting(click.Group):
    """A group of commands that suggests the one that was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(f"no command {name!r}{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def run(work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run `work` to its end on asyncio. Ctrl-C and SIGTERM cancel it, let it clean up, then raise KeyboardInterrupt."""
    graceful()
    return anyio.run(work, *arguments)


def log_from(level: int) -> None:
    """Let AMB's own log lines from `level` on reach stderr; with ``AMB_DEBUG=1`` all of them, and client libraries'
    warnings. What those say while they try again means little to whoever did not choose them."""
    logging.basicConfig(
        format="amb: %(levelname)s: %(message)s", level=logging.WARNING if debugging() else logging.CRITICAL
    )
    logging.getLogger("amb").setLevel(logging.DEBUG if debugging() else level)


def note(text: str) -> None:
    """One line for people, on stderr."""
    click.echo(f"amb: note: {text}", err=True)


def read_payload(text: str, as_text: bool = False) -> Any:
    """The value of a PAYLOAD argument: JSON, or the text itself where it is plainly none. ``-`` reads stdin.

    Raises: click.UsageError for something that begins like JSON and is not: a typo must not travel as text."""
    if text == "-":
        text = sys.stdin.read().removesuffix("\n")
    return text if as_text else parse_payload(text)


def parse_payload(text: str) -> Any:
    """As `read_payload`, without stdin."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise click.UsageError(
                f"the payload looks like JSON but is not ({error}); use --text to send it as text"
            ) from None
        return text
    except UnicodeEncodeError:
        raise click.UsageError("the payload is not valid UTF-8 text") from None


def parse_headers(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("k=v", …)`` as a dict. Raises: click.UsageError for one without ``=``."""
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise click.UsageError(f"--header {pair!r} must look like name=value")
    return dict(pair.split("=", 1) for pair in pairs)


def message_record(message: Message) -> dict[str, Any]:
    """A message as JSON-able fields; what is absent is left out."""
    fields = {
        "id": message.id,
        "topic": message.topic,
        "data": message.data,
        "timestamp": float(message.timestamp),
        "priority": message.priority.name.lower(),
        "attempt": message.attempt,
        "headers": message.headers or None,
        "metadata": message.metadata or None,
        "sender": message.sender,
        "key": message.key,
        "correlation_id": message.correlation_id,
        "ttl": message.ttl,
        "position": message.position,
    }
    return {name: value for name, value in fields.items() if value is not None}


def echo_json(value: Any) -> None:
    """One JSON value on one line of stdout, flushed."""
    click.echo(to_json(value))


def to_json(value: Any) -> str:
    """`value` as JSON; what JSON has no form for becomes its text."""
    return msgspec.json.encode(value, enc_hook=str).decode()


def data_text(data: Any) -> str:
    """A payload for people: text as it is, everything else as JSON. Control characters are escaped, since a
    message must not be able to write to the terminal."""
    text = data if isinstance(data, str) else to_json(data)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clock(seconds: float) -> str:
    """A time of day for people."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S.%f")[:-3]
