"""``amb doctor``: is the configuration good, is the broker there, may we use it, and if not, what to do."""

from __future__ import annotations

import difflib
import logging
import os
import platform
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, Literal

import anyio
import click
import msgspec

from .. import Message, MessageBus, __version__
from .._plugins import load_serializer, registry
from ..errors import AccessDenied, AmbError, AuthenticationError, BrokerUnavailable, PluginError
from ._common import Where, broker_options, describe, echo_json, examples, json_option, log_from, run
from ._exit import exit_code

#: Where messages are tried. Always the same name, so that checking often leaves no more than this behind.
TOPIC = "amb.doctor"
STEP = 10.0
CORE_VARIABLES = {"AMB_BROKER", "AMB_SERIALIZER", "AMB_DEBUG", "AMB_TRACE_PLUGINS"}
MARKS = {"ok": "ok  ", "warn": "!   ", "fail": "FAIL"}


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at. `code`: what the command ends in because of it."""

    name: str
    result: Literal["ok", "warn", "fail"]
    text: str
    fix: str = ""
    code: int = 0


@click.command(
    epilog=examples(
        "amb doctor",
        "amb doctor --broker redis",
        "amb doctor --url rediss://cache.example:6380 --json",
    )
)
@json_option
@broker_options
def doctor(where: Where, as_json: bool) -> None:
    """Check configuration, plugins, the broker, and what it lets us do; say how to fix what is wrong.

    Tries messages on the topic 'amb.doctor', which a broker that keeps topics keeps. Ends in 0 if nothing failed;
    else in the code of the first failure.
    """
    log_from(logging.CRITICAL)  # what would be logged is a check
    checks: list[Check] = []

    def note(check: Check) -> None:
        checks.append(check)
        if not as_json:
            _say(check)

    run(_examine, where, note)
    failed = [check for check in checks if check.result == "fail"]
    if as_json:
        echo_json({"ok": not failed, "checks": checks})
    elif failed:
        click.echo(f"\n{len(failed)} of {len(checks)} checks failed; to begin with: {failed[0].fix}")
    else:
        click.echo("\nall is well")
    if failed:
        raise click.exceptions.Exit(failed[0].code)


def _say(check: Check) -> None:
    click.echo(f"{MARKS[check.result]}  {check.name:<14}{check.text}")
    if check.fix:
        click.echo(f"{'':<20}fix: {check.fix}")


async def _examine(where: Where, note: Callable[[Check], None]) -> None:
    for check in _before_connecting(where):
        note(check)
        if check.result == "fail" and check.name == "broker":
            return
    async with aclosing(_with_the_broker(where)) as checks:
        async for check in checks:
            note(check)


def _before_connecting(where: Where) -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}, amb-core {__version__}")
    names = ", ".join(f"{entry.name} ({entry.owner})" for entry in registry().all("broker"))
    yield Check("brokers", "ok", names)
    for owner, error in registry().failures.items():
        dist = owner.partition(":")[0]
        yield _failed("plugin", error, f"pip install --upgrade {dist}, or pip uninstall {dist}")
    yield from _variables()
    try:
        name = os.environ.get("AMB_SERIALIZER") or "json"
        load_serializer(name)
        yield Check("serializer", "ok", name)
    except AmbError as error:
        yield _failed("serializer", error, "set AMB_SERIALIZER to json or msgpack, or unset it")
    try:
        bus = _bus(where)
    except (AmbError, ValueError, TypeError) as error:
        yield _failed("broker", error, _how_to_configure(error))
    else:
        chosen = "--broker/--url" if where.broker or where.url else "AMB_BROKER" if os.environ.get("AMB_BROKER") else ""
        yield Check("broker", "ok", f"{describe(bus.broker)} (from {chosen or 'the default'})")


def _variables() -> Iterator[Check]:
    """The AMB_… variables that are set; a misspelt one counts for nothing, which nobody would notice."""
    known = set(CORE_VARIABLES)
    for entry in registry().all("broker"):
        fields = getattr(entry.make, "__struct_fields__", ())
        known |= {f"AMB_{entry.name}_{field}".upper().replace("-", "_") for field in fields}
        known |= set((entry.env or {}).values())
    given = sorted(name for name in os.environ if name.startswith("AMB_"))
    if given:
        yield Check("environment", "ok", ", ".join(given))
    for name in given:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in known and close:
            yield Check("environment", "warn", f"{name} means nothing to AMB", f"unset it, or did you mean {close[0]}?")


def _bus(where: Where) -> MessageBus:
    return MessageBus(where.broker, broker_url=where.url, connect_timeout=where.connect_timeout, sender="amb-doctor")


def _how_to_configure(error: Exception) -> str:
    if isinstance(error, PluginError) and "pip install " in str(error):
        return "pip install " + str(error).partition("pip install ")[2].partition(".")[0]
    if isinstance(error, PluginError):
        return "'amb backends' lists the names; correct AMB_BROKER, --broker or --url"
    return "correct the option or variable named above"


async def _with_the_broker(where: Where) -> AsyncGenerator[Check, None]:
    bus = _bus(where)
    try:
        await bus.connect()
        health = await bus.health()
    except (AmbError, OSError) as error:
        yield _failed("reachability", error, _how_to_reach(error, bus))
        return
    try:
        facts = ", ".join(f"{name} {value}" for name, value in health.details.items())
        yield Check("reachability", "ok", facts or "inside this process")
        for name, step in STEPS.items():
            try:
                with anyio.fail_after(STEP):
                    yield Check(name, "ok", await step(bus))
            except (AmbError, OSError) as error:
                yield _failed(name, error, _how_to_permit(error, name))
    finally:
        await bus.disconnect()


async def _publish(bus: MessageBus) -> str:
    await bus.publish(TOPIC, "a visit", ttl=STEP, wait_for_confirmation=bus.capabilities.confirm != "none")
    return f"may publish to {TOPIC!r}"


async def _round_trip(bus: MessageBus, group: str | None) -> float:
    """Seconds from publishing a message until a subscription of ours has it."""
    marker, came = f"{os.getpid()}-{anyio.current_time()}", anyio.Event()

    async def handler(message: Message) -> None:
        if message.data == marker:
            came.set()

    subscription = await bus.subscribe(TOPIC, handler, group=group)
    try:
        begin = anyio.current_time()
        await bus.publish(TOPIC, marker, ttl=STEP)
        await came.wait()
        return anyio.current_time() - begin
    finally:
        await bus.unsubscribe(subscription)


async def _subscribe(bus: MessageBus) -> str:
    return f"a message came back in {await _round_trip(bus, None) * 1000:.1f} ms"


async def _share(bus: MessageBus) -> str:
    if not bus.capabilities.groups:
        return "this broker has no groups"
    return f"a message came back in {await _round_trip(bus, 'amb-doctor') * 1000:.1f} ms"


async def _ask(bus: MessageBus) -> str:
    async def answer(message: Message) -> Any:
        return message.data

    subscription = await bus.subscribe(f"{TOPIC}.ask", answer, responds=True)
    try:
        begin = anyio.current_time()
        await bus.request(f"{TOPIC}.ask", 1, timeout=STEP)
        return f"a reply came in {(anyio.current_time() - begin) * 1000:.1f} ms"
    finally:
        await bus.unsubscribe(subscription)


STEPS: dict[str, Callable[[MessageBus], Awaitable[str]]] = {
    "publish": _publish,
    "subscribe": _subscribe,
    "group": _share,
    "request": _ask,
}


def _failed(name: str, error: Exception, fix: str) -> Check:
    text = " ".join(str(error).split()) or f"no answer within {STEP:g} s"
    return Check(name, "fail", text, fix, exit_code(error))


def _how_to_reach(error: Exception, bus: MessageBus) -> str:
    name = next((entry.name for entry in registry().all("broker") if entry.make is type(bus.broker)), "broker")
    variable = f"AMB_{name}_URL".upper()
    if isinstance(error, AuthenticationError):
        return f"give a good user and password: {variable}={name}://USER:PASSWORD@HOST, or the broker's own options"
    if isinstance(error, AccessDenied):
        return "let the administrator allow this user to connect"
    return f"start the server, or say where it is: --url {name}://HOST:PORT, or {variable}"


def _how_to_permit(error: Exception, step: str) -> str:
    if isinstance(error, AccessDenied):
        return f"grant this user what {step!r} needs, as the line above says; docs/brokers names the permissions"
    if isinstance(error, BrokerUnavailable):
        return "the broker went away in between: look at its log, then try again"
    return "the broker took the message and did not hand it over in time: look at its load and its log"
