"""The command group: finds commands, suggests the one that was meant, turns every failure into one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from .._advice import did_you_mean
from .._plugins import registry
from ._common import examples
from ._exit import report

#: Command: its module here, the attribute in it, its line in ``amb --help``. Loaded when it runs.
BUILT_IN = {
    "backends": ("_backends", "backends", "Show which brokers there are and what each can do."),
    "conform": ("_conform", "conform", "Prove that a broker does what AMB promises."),
    "demo": ("_demo", "demo", "Run a system of agents over the history and files of a repository."),
    "dlq": ("_dlq", "dlq", "Look at dead letters, put them back, or drop them."),
    "doctor": ("_doctor", "doctor", "Check the configuration and the broker, and say how to fix what is wrong."),
    "publish": ("_publish", "publish", "Publish a message."),
    "request": ("_request", "request", "Ask whoever answers on a topic, and print the reply."),
    "run": ("_run", "run", "Run a program's bus, in one process or several."),
    "scatter": ("_request", "scatter", "Ask everybody who answers on a topic."),
    "subscribe": ("_subscribe", "subscribe", "Print messages as they go by."),
    "tap": ("_subscribe", "subscribe", "The same as subscribe."),
}


class Commands(click.Group):
    """The built-in commands, then those of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*BUILT_IN, *(entry.name for entry in registry().all("command") if entry.name not in BUILT_IN)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BUILT_IN:
            module, attribute, _ = BUILT_IN[cmd_name]
            command: click.Command = getattr(import_module(f"{__package__}.{module}"), attribute)
            return command
        found = registry().seek("command", cmd_name)
        return found.make() if found else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = click.utils.make_str(args[0])
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(f"no command {name!r}{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, without importing a single command."""
        plugins = {entry.name: entry.help or f"From {entry.owner}." for entry in registry().all("command")}
        lines = plugins | {name: line for name, (_, _, line) in BUILT_IN.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, lines[name]) for name in self.list_commands(ctx)])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=examples(
        "amb demo",
        """amb publish orders.created '{"id": 7}' --url redis://localhost:6379""",
        "amb subscribe 'agents.#' --json",
        "amb doctor --broker redis",
    )
    + "\n\nExit codes: 0 done, 1 failed, 2 usage or configuration, 3 broker out of reach, 4 no such thing or not "
    "installed, 5 time ran out, 6 access refused, 7 not supported by this broker, 8 the responder failed, 130 Ctrl-C, "
    "141 broken pipe. AMB_DEBUG=1 shows tracebacks.",
)
@click.version_option(package_name="amb-core", prog_name="amb", message="%(prog)s %(version)s")
def amb() -> None:
    """The Agent Message Bus: publish, subscribe, ask, and look after brokers.

    Every command takes --broker NAME and --url URL; without them AMB_BROKER and the broker's own variables
    decide, else the memory broker, which lives inside one process.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``amb``; returns the exit code. Never raises."""
    try:
        code = amb.main(args=None if arguments is None else list(arguments), prog_name="amb", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except BaseException as error:
        return report(error)
    return code if isinstance(code, int) else 0
