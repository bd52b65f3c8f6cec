"""``amb request`` and ``amb scatter``: ask, and print what is answered."""

from __future__ import annotations

from typing import Any

import click

from .. import Message, RequestTimeout
from ._common import (
    PRIORITIES,
    SECONDS,
    Where,
    broker_options,
    data_text,
    echo_json,
    examples,
    json_option,
    message_record,
    parse_headers,
    read_payload,
    run,
)
from ._exit import CommandFailed, ExitCode


@click.command(
    epilog=examples(
        """amb request math.add '{"a": 1, "b": 2}'""",
        "amb request agents.health null --timeout 2 --json",
        "cat report.json | amb request agents.review -",
    )
)
@click.argument("topic")
@click.argument("payload")
@click.option(
    "--timeout", metavar="S", type=SECONDS, default=30.0, show_default=True, help="Seconds to wait for the reply."
)
@click.option("--header", "headers", metavar="NAME=VALUE", multiple=True, help="A header; may be repeated.")
@click.option("--priority", type=PRIORITIES, help="The lane it travels in.  [default: normal]")
@click.option("--text", "as_text", is_flag=True, help="Send PAYLOAD as a string even if it is valid JSON.")
@json_option
@broker_options
def request(
    where: Where,
    topic: str,
    payload: str,
    timeout: float,
    headers: tuple[str, ...],
    priority: str | None,
    as_text: bool,
    as_json: bool,
) -> None:
    """Ask whoever answers on TOPIC, and print the reply.

    PAYLOAD is read as by 'amb publish'. No answer in time ends in 5, a responder that failed in 8.
    """
    value, header = read_payload(payload, as_text), parse_headers(headers)

    async def ask() -> Message:
        async with where.bus() as bus:
            return await bus.request(topic, value, timeout, headers=header, priority=priority or "normal")

    _show(run(ask), as_json)


@click.command(
    epilog=examples(
        "amb scatter agents.health null                   # everybody who answers within 5 s",
        """amb scatter agents.bid '{"job": 7}' --max 3 --timeout 2""",
        "amb scatter agents.health null --min 2 || echo 'too few'",
    )
)
@click.argument("topic")
@click.argument("payload")
@click.option(
    "--timeout", metavar="S", type=SECONDS, default=5.0, show_default=True, help="Seconds to collect replies."
)
@click.option(
    "--min", "least", type=click.IntRange(min=0), default=0, show_default=True, help="Fewer replies are a failure (5)."
)
@click.option("--max", "most", type=click.IntRange(min=1), help="Stop at so many replies.")
@click.option("--text", "as_text", is_flag=True, help="Send PAYLOAD as a string even if it is valid JSON.")
@json_option
@broker_options
def scatter(
    where: Where, topic: str, payload: str, timeout: float, least: int, most: int | None, as_text: bool, as_json: bool
) -> None:
    """Ask everybody who answers on TOPIC, and print one reply a line.

    PAYLOAD is read as by 'amb publish'. Replies that came in time are printed even if they are too few.
    """
    if most is not None and least > most:
        raise click.UsageError(f"--min {least} is above --max {most}")
    value = read_payload(payload, as_text)

    async def ask() -> list[Message]:
        async with where.bus() as bus:
            return await bus.scatter(topic, value, timeout=timeout, min_responses=least, max_responses=most)

    try:
        replies = run(ask)
    except RequestTimeout as error:
        for reply in error.responses:
            _show(reply, as_json)
        raise CommandFailed(
            f"{len(error.responses)} of {least} replies on {topic!r} within {timeout:g} s", ExitCode.TIMEOUT
        ) from error
    for reply in replies:
        _show(reply, as_json)


def _show(reply: Message, as_json: bool) -> None:
    fields: Any = message_record(reply)
    if as_json:
        echo_json(fields)
    else:
        click.echo(data_text(reply.data))
