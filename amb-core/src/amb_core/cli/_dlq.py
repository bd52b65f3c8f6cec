"""``amb dlq``: look at dead letters, put them back, or throw them away."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from .. import DeadLetter, MessageBus
from ._common import Suggesting, Where, broker_options, data_text, echo_json, examples, json_option, run
from ._exit import CommandFailed, ExitCode

#: More than anybody reads; a dead-letter topic with more than this wants emptying first.
ALL = 100_000
topic_option = click.option("--topic", default="dead-letters", show_default=True, help="The dead-letter topic.")
ids_argument = click.argument("ids", metavar="[ID]...", nargs=-1)


@click.group(
    cls=Suggesting,
    epilog=examples(
        "amb dlq list",
        "amb dlq show 5f3a-17",
        "amb dlq retry 5f3a-17 5f3a-18",
        "amb dlq retry --all --topic orders-dead",
        "amb dlq drop --all",
    ),
)
def dlq() -> None:
    """Look at dead letters, put them back, or drop them."""


@dlq.command("list", epilog=examples("amb dlq list --limit 20", "amb dlq list --json | jq -r .id"))
@topic_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The oldest so many.")
@json_option
@broker_options
def list_(where: Where, topic: str, limit: int, as_json: bool) -> None:
    """Print dead letters, oldest first, one a line; they stay where they are."""

    async def read() -> list[DeadLetter]:
        async with where.bus() as bus:
            return await bus.dead_letters(topic, limit)

    letters = run(read)
    for letter in letters:
        if as_json:
            echo_json(record(letter))
        else:
            info = letter.info
            click.echo(f"{letter.id}  {info.last_time.isoformat()[:19]}  {info.topic}  {info.reason}: {info.error}")
    if not letters and not as_json:
        click.echo(f"no dead letters on {topic!r}", err=True)


@dlq.command(epilog=examples("amb dlq show 5f3a-17", "amb dlq show 5f3a-17 --json | jq .data"))
@click.argument("ident", metavar="ID")
@topic_option
@json_option
@broker_options
def show(where: Where, ident: str, topic: str, as_json: bool) -> None:
    """Print one dead letter: what it was, where it failed, and why."""

    async def read() -> list[DeadLetter]:
        async with where.bus() as bus:
            return [letter for letter in await bus.dead_letters(topic, ALL) if letter.id == ident]

    letters = run(read)
    if not letters:
        raise _missing([ident], topic)
    for letter in letters:
        if as_json:
            echo_json(record(letter))
        else:
            for name, value in record(letter).items():
                click.echo(f"{name + ':':<12} {data_text(value)}")


@dlq.command(epilog=examples("amb dlq retry 5f3a-17", "amb dlq retry --all"))
@ids_argument
@click.option("--all", "everything", is_flag=True, help="Every dead letter of the topic.")
@topic_option
@json_option
@broker_options
def retry(where: Where, ids: tuple[str, ...], everything: bool, topic: str, as_json: bool) -> None:
    """Publish dead letters to their topics again, for the group that failed, with attempts starting anew."""
    wanted = _wanted(ids, everything)

    async def again() -> int:
        async with where.bus() as bus:
            await _check(bus, wanted, topic)
            return await bus.retry_dead_letters(wanted, topic)

    _say("retried", run(again), as_json)


@dlq.command(epilog=examples("amb dlq drop 5f3a-17", "amb dlq drop --all"))
@ids_argument
@click.option("--all", "everything", is_flag=True, help="Every dead letter of the topic.")
@topic_option
@json_option
@broker_options
def drop(where: Where, ids: tuple[str, ...], everything: bool, topic: str, as_json: bool) -> None:
    """Remove dead letters for good."""
    wanted = _wanted(ids, everything)

    async def away() -> int:
        async with where.bus() as bus:
            await _check(bus, wanted, topic)
            return await bus.drop_dead_letters(wanted, topic)

    _say("dropped", run(away), as_json)


def record(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as JSON-able fields. What cannot be decoded is shown as its bytes."""
    info = letter.info
    body: dict[str, Any] = {"data": letter.data}
    if letter.data is None and letter.body not in (b"", b"null"):
        body = {"body": letter.body.decode(errors="backslashreplace")}
    return {
        "id": letter.id,
        "topic": info.topic,
        "reason": info.reason,
        "error": info.error,
        "attempts": info.attempts,
        "first_time": info.first_time.isoformat(),
        "last_time": info.last_time.isoformat(),
        "group": info.group,
        "handler": info.handler,
        "position": info.position,
        "headers": letter.headers,
        **body,
    }


def _wanted(ids: tuple[str, ...], everything: bool) -> Collection[str] | None:
    if bool(ids) == everything:
        raise click.UsageError("name the dead letters by ID, or say --all")
    return None if everything else set(ids)


async def _check(bus: MessageBus, wanted: Collection[str] | None, topic: str) -> None:
    """Do all or nothing: an unknown id is a typing mistake."""
    if wanted is not None:
        known = {letter.id for letter in await bus.dead_letters(topic, ALL)}
        if missing := sorted(set(wanted) - known):
            raise _missing(missing, topic)


def _missing(ids: list[str], topic: str) -> CommandFailed:
    return CommandFailed(
        f"no dead letter {', '.join(ids)} on {topic!r}: 'amb dlq list' shows what there is", ExitCode.NOT_FOUND
    )


def _say(done: str, number: int, as_json: bool) -> None:
    if as_json:
        echo_json({done: number})
    else:
        click.echo(f"{done} {number} dead letter{'' if number == 1 else 's'}")
