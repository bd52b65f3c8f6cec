"""``amb demo``: agents at work over a repository."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import anyio
import click
import msgspec

from ._common import SECONDS, describe, echo_json, examples, hand_down, json_option, log_from, run
from ._exit import CommandFailed, ExitCode
from ._reload import Guard


@click.command(
    epilog=examples(
        "amb demo                              # this folder, in memory",
        "amb demo --input ~/src/project --limit 100",
        "AMB_BROKER=redis amb demo             # the same agents in six processes",
        "amb demo --url redis://localhost:6379 --json",
        "python -m amb_core.demo               # the same command",
    )
)
@click.option(
    "--input",
    "folder",
    metavar="DIR",
    default=".",
    show_default="this folder",
    help="A repository, or any folder of source files.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="The newest so many commits, and so many files.",
)
@click.option(
    "--patience",
    metavar="S",
    type=SECONDS,
    default=20.0,
    show_default=True,
    help="Seconds of silence after which what is missing is lost.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log every retry and dead letter.")
@click.option("--broker", metavar="NAME", help="Broker name or URL.  [default: AMB_BROKER, else memory]")
@click.option("--url", metavar="URL", help="Where the broker is.  [default: the broker's AMB_… variable]")
@click.option("--agent", hidden=True, help="Internal: be one agent in a process of its own.")
@json_option
def demo(
    folder: str, limit: int, agent: str | None, broker: str | None, url: str | None, verbose: bool, **options: Any
) -> None:
    """Let agents read, analyse and review a repository's commits and files.

    A reader announces each; analysts in a group share the work, fail at some of it, and ask reviewers; a governor's
    orders overtake what waits; a watcher keeps the books. Ends in 0 if everything that was announced was handled
    or is a dead letter, else in 1; in 3 if the broker is out of reach. One demo at a time on one broker.
    """
    from ..demo import launch, source

    # Retries and dead letters are what the demo is about; the summary shows them.
    log_from(logging.INFO if verbose else logging.CRITICAL)
    if url and not broker and not agent:
        broker, url = url, None
    try:
        found = source.read_source(folder, limit)
    except source.NoInput as error:
        raise CommandFailed(str(error), ExitCode.NOT_FOUND) from error
    bus = launch.make_bus(broker, url)
    if agent:
        Guard(reload=False).start()
        anyio.run(launch.run_agent, agent, bus, found)  # ends on SIGTERM by itself
    else:
        hand_down(broker, url)
        _run(
            bus,
            launch.Plan(found, options["patience"], launch.agent_command(folder, limit, verbose)),
            options["as_json"],
        )


def _run(bus: Any, plan: Any, as_json: bool) -> None:
    from ..demo import launch, summary

    say = partial(click.echo, err=True)
    where = (
        "together in one process" if bus.capabilities.single_process else f"in {len(launch.PROCESSES) + 1} processes"
    )
    source = plan.source
    history = f"{len(source.commits)} commits" if not source.no_history else f"no history ({source.no_history})"
    say(f"AMB demo: {history} and {len(source.files)} files of {source.folder}")
    say(f"agents {where}, on {describe(bus.broker)}")
    try:
        result = run(launch.run, bus, plan, lambda line: say(f"  {line}"))
    except* launch.AgentDied as group:
        died = group.exceptions[0]
        assert isinstance(died, launch.AgentDied)
        raise CommandFailed(str(died), died.code if died.code > 0 else ExitCode.FAILED) from group
    if as_json:
        echo_json({"ok": result.ok, **msgspec.structs.asdict(result)})
    else:
        click.echo(summary.text(result))
    if not result.ok:
        raise CommandFailed("the account does not balance: see LOST above")
