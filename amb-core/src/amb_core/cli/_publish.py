"""``amb publish``: one message, or one a line."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

import click

from .. import Message, MessageBus
from ._common import (
    PRIORITIES,
    SECONDS,
    Where,
    broker_options,
    echo_json,
    examples,
    json_option,
    parse_headers,
    parse_payload,
    read_payload,
    run,
)

BATCH = 100


@click.command(
    epilog=examples(
        """amb publish orders.created '{"id": 7}'""",
        "amb publish greetings hello                      # plain text is a string",
        "echo '[1, 2]' | amb publish numbers -            # payload from stdin",
        "amb publish events - --lines < events.jsonl      # one message a line",
        "amb publish agents.stop null --priority critical",
        "amb publish jobs '{}' --delay 60 --ttl 600 --key customer-9 --header source=cron",
        "amb publish jobs '{}' --url redis://localhost:6379",
    )
)
@click.argument("topic")
@click.argument("payload")
@click.option("--text", "as_text", is_flag=True, help="Send PAYLOAD as a string even if it is valid JSON.")
@click.option("--lines", is_flag=True, help="With PAYLOAD '-': every line of stdin is a message.")
@click.option("--header", "headers", metavar="NAME=VALUE", multiple=True, help="A header; may be repeated.")
@click.option("--priority", type=PRIORITIES, help="The lane it travels in.  [default: normal]")
@click.option("--ttl", metavar="S", type=SECONDS, help="Worthless after so many seconds.")
@click.option("--delay", metavar="S", type=SECONDS, help="Not to be delivered before so many seconds have passed.")
@click.option("--key", metavar="KEY", help="The ordering key.")
@json_option
@broker_options
def publish(
    where: Where,
    topic: str,
    payload: str,
    as_text: bool,
    lines: bool,
    headers: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Publish PAYLOAD on TOPIC and print the message's id.

    PAYLOAD is JSON; what is plainly no JSON is sent as a string; '-' reads it from stdin. Returns when
    the broker has accepted it.
    """
    if lines and payload != "-":
        raise click.UsageError("--lines reads messages from stdin: give '-' as the PAYLOAD")
    if lines and options["delay"]:
        raise click.UsageError("--delay works for one message, not with --lines")
    header = parse_headers(headers)
    if lines:
        run(_publish_lines, where, topic, as_text, header, as_json, options)
    else:
        run(_publish_one, where, topic, read_payload(payload, as_text), header, as_json, options)


async def _publish_one(
    where: Where, topic: str, value: Any, headers: dict[str, str], as_json: bool, options: dict[str, Any]
) -> None:
    async with where.bus() as bus:
        confirm = bus.capabilities.confirm != "none"
        ident = await bus.publish(topic, value, headers=headers, wait_for_confirmation=confirm, **options)
        _show(topic, ident, as_json)


async def _publish_lines(
    where: Where, topic: str, as_text: bool, headers: dict[str, str], as_json: bool, options: dict[str, Any]
) -> None:
    del options["delay"]
    lines = (line.rstrip("\n") for line in sys.stdin if line.strip())
    async with where.bus() as bus:
        while chunk := list(islice(lines, BATCH)):
            values = [line if as_text else parse_payload(line) for line in chunk]
            await _publish_chunk(bus, [_message(topic, value, headers, options) for value in values], as_json)


async def _publish_chunk(bus: MessageBus, messages: list[Message], as_json: bool) -> None:
    for message, ident in zip(messages, await bus.publish_batch(messages), strict=True):
        _show(message.topic, ident, as_json)


def _message(topic: str, value: Any, headers: dict[str, str], options: dict[str, Any]) -> Message:
    given = {name: value for name, value in options.items() if value is not None}
    return Message(topic, value, headers=headers, **given)


def _show(topic: str, ident: str, as_json: bool) -> None:
    if as_json:
        echo_json({"id": ident, "topic": topic})
    else:
        click.echo(ident)
