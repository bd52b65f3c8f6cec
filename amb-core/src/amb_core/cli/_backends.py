"""``amb backends``: which brokers there are, and what each can do."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from .._advice import INSTALL
from .._plugins import registry
from .._registry import Entry
from ..broker import Capabilities
from ..errors import AmbError
from ._common import echo_json, examples, json_option

NAMES = Capabilities.__struct_fields__


class Backend(msgspec.Struct, frozen=True):
    """One broker. `capabilities` are those of its default options; None: `problem` says why."""

    name: str
    #: ``distribution:entry point``; None: not installed.
    plugin: str | None
    capabilities: Capabilities | None
    problem: str | None = None


@click.command(
    epilog=examples(
        "amb backends",
        "amb backends redis memory",
        "amb backends --json | jq '.[] | select(.capabilities.replay != \"none\") | .name'",
        "amb backends --markdown > docs/capabilities.md",
    )
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--markdown", is_flag=True, help="Print a table for documentation.")
@json_option
def backends(names: tuple[str, ...], markdown: bool, as_json: bool) -> None:
    """Show what each broker can do with its default options; all installed ones, or those named.

    What a broker does not declare, AMB refuses before any I/O.
    """
    if markdown and as_json:
        raise click.UsageError("--json and --markdown are two forms: choose one")
    entries = [registry().find("broker", name) for name in names] or registry().all("broker")
    found = [_backend(entry) for entry in entries]
    missing = [] if names else _missing(found)
    if as_json:
        echo_json([*found, *missing])
    elif markdown:
        click.echo(_markdown(found))
    else:
        click.echo(_table(found))
        for backend in (*(b for b in found if b.problem), *missing):
            click.echo(f"{backend.name}: {backend.problem}", err=True)
        for error in registry().failures.values():
            click.echo(str(error), err=True)


def _backend(entry: Entry) -> Backend:
    try:
        return Backend(entry.name, entry.owner, entry.make().capabilities)
    except (AmbError, TypeError) as error:
        return Backend(
            entry.name, entry.owner, None, f"its capabilities depend on options that have no default: {error}"
        )


def _missing(found: list[Backend]) -> list[Backend]:
    known = {backend.name for backend in found}
    return [
        Backend(name, None, None, f"not installed: pip install {dist}")
        for name, dist in INSTALL["broker"].items()
        if name not in known
    ]


def _rows(found: list[Backend]) -> tuple[list[str], list[list[str]]]:
    able = [backend for backend in found if backend.capabilities is not None]
    rows = [[name, *(_cell(getattr(backend.capabilities, name)) for backend in able)] for name in NAMES]
    return ["capability", *(backend.name for backend in able)], rows


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "-"
    if isinstance(value, float):
        return f"{value:g} s" if value else "-"
    return "-" if value in (None, "none", 0) else str(value)


def _table(found: list[Backend]) -> str:
    head, rows = _rows(found)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


def _markdown(found: list[Backend]) -> str:
    head, rows = _rows(found)
    named = [[f"`{row[0]}`", *row[1:]] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *named))
