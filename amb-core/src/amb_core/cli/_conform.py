"""``amb conform BROKER``: the conformance kit on the command line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from itertools import count

import click
import msgspec

from .. import MessageBus
from ..broker import Broker
from ._common import describe, echo_json, examples, json_option, log_from, note
from ._exit import CommandFailed, ExitCode
from ._signals import graceful

#: Seconds of lease with which the cases end in a minute or two.
LEASE = 1.5


@click.command(
    epilog=examples(
        "amb conform memory",
        "amb conform redis --url redis://localhost:6379/9",
        "amb conform acme --only A --only D7         # a section, a case",
        "amb conform redis --json > report.json",
    )
)
@click.argument("broker")
@click.option("--url", metavar="URL", help="Where the broker is.  [default: the broker's AMB_… variable]")
@click.option("--only", "ids", metavar="ID", multiple=True, help="A case (D7) or section (D); may be repeated.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=16, show_default=True, help="Cases that run at the same time."
)
@click.option(
    "--lease",
    type=click.FloatRange(min=0.2),
    metavar="SECONDS",
    help="The broker's lease while it is tested, if it has that option: cases wait for leases to end.  "
    f"[default: its own, at most {LEASE:g}]",
)
@json_option
def conform(broker: str, url: str | None, ids: tuple[str, ...], jobs: int, lease: float | None, as_json: bool) -> None:
    """Run AMB's conformance cases against BROKER (a name or URL) and print one line a case.

    Use a server of its own: the cases write, consume and delete. Ends in 0 if nothing failed, else in 1.
    """
    try:
        from .. import testing
    except ModuleNotFoundError as error:
        raise CommandFailed(
            f"the conformance kit needs {error.name!r}, which is not installed: pip install 'amb-core[testing]'",
            ExitCode.NOT_FOUND,
        ) from error
    graceful()
    log_from(logging.CRITICAL)  # cases fail on purpose; what matters is in the table
    value = _with_lease(MessageBus(broker, broker_url=url).broker, lease)
    note(f"running the conformance cases against {describe(value)}")
    report = testing.conform(value, ids=ids or None, jobs=jobs, on_outcome=_progress())
    if as_json:
        echo_json({**report.summary(), "outcomes": report.outcomes})
    else:
        click.echo(report.table())
    if not report.ok:
        raise CommandFailed(f"{len(report.ids('failed'))} case(s) failed: {' '.join(report.ids('failed'))}")


def _with_lease(broker: Broker, lease: float | None) -> Broker:
    """The broker with that lease, or with a short one, if it has such an option and it is not switched off."""
    own = getattr(broker, "lease", None)
    if isinstance(broker, msgspec.Struct) and isinstance(own, int | float):
        return msgspec.structs.replace(broker, lease=lease or min(own, LEASE))
    return broker


def _progress() -> Callable[[object], None]:
    """Counts the cases that have ended, for somebody who looks at a terminal."""
    ended = count(1)

    def told(outcome: object) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{next(ended)} cases have ended ", nl=False, err=True)

    return told
