"""``amb subscribe`` (also ``amb tap``): print what goes by."""

from __future__ import annotations

import logging
from typing import Any, Literal

import anyio
import click

from .. import Message
from ._common import (
    SECONDS,
    Where,
    broker_options,
    clock,
    data_text,
    describe,
    echo_json,
    examples,
    json_option,
    log_from,
    message_record,
    note,
    run,
)
from ._exit import CommandFailed, ExitCode


@click.command(
    epilog=examples(
        "amb subscribe 'agents.#'                         # everything agents say, until Ctrl-C",
        "amb subscribe orders.created --count 1 --timeout 10",
        "amb subscribe 'orders.*' --group audit           # shares the work with the group's other members",
        "amb subscribe 'logs.#.error' --json | jq .data",
        "amb tap dead-letters                             # the same command, shorter",
    )
)
@click.argument("pattern")
@click.option("--group", metavar="NAME", help="Join a group: each message goes to one member, and is consumed.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option(
    "--timeout",
    metavar="S",
    type=SECONDS,
    help="Stop after so many seconds; with --count, missing messages are a failure (5).",
)
@click.option(
    "--start",
    type=click.Choice(["latest", "earliest"]),
    default="latest",
    show_default=True,
    help="Where a new group begins.",
)
@json_option
@broker_options
def subscribe(where: Where, **options: Any) -> None:
    """Print messages on topics that match PATTERN, until Ctrl-C.

    A word of a PATTERN may be '*' (one word) or '#' (any number of words). Without --group it only looks:
    nobody misses a message because of it.
    """
    run(_subscribe, where, Options(**options))


class Options:
    """What the user asked for, and how much of it came."""

    def __init__(
        self,
        pattern: str,
        group: str | None,
        count: int | None,
        timeout: float | None,
        start: Literal["latest", "earliest"],
        as_json: bool,
    ) -> None:
        self.pattern, self.group, self.count, self.timeout, self.start, self.as_json = (
            pattern,
            group,
            count,
            timeout,
            start,
            as_json,
        )
        self.seen = 0


async def _subscribe(where: Where, options: Options) -> None:
    async with where.bus() as bus:
        with anyio.move_on_after(options.timeout) as deadline:
            async with bus.stream(options.pattern, group=options.group, start=options.start) as messages:
                log_from(logging.WARNING)  # from now on it matters to know that the broker is away
                note(f"subscribed to {options.pattern!r} on {describe(bus.broker)}; Ctrl-C ends it")
                async for message in messages:
                    _show(message, options)
                    await message.ack()
                    if options.seen == options.count:
                        break
    if deadline.cancelled_caught and options.count:
        raise CommandFailed(
            f"{options.seen} of {options.count} messages came within {options.timeout:g} s", ExitCode.TIMEOUT
        )


def _show(message: Message, options: Options) -> None:
    options.seen += 1
    if options.as_json:
        echo_json(message_record(message))
    else:
        click.echo(f"{clock(message.timestamp)}  {message.topic}  {data_text(message.data)}")
