"""The command group: finds commands, suggests the one that was meant, turns every failure into one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from .._plugins import load_commands, registry
from .._registry import Entry
from ..errors import PluginError
from ._common import Suggesting, examples
from ._exit import MEANINGS, report
from ._signals import abrupt

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


class Commands(Suggesting):
    """The built-in commands, then those of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*BUILT_IN, *(name for name in load_commands() if name not in BUILT_IN)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BUILT_IN:
            module, attribute, _ = BUILT_IN[cmd_name]
            command: click.Command = getattr(import_module(f"{__package__}.{module}"), attribute)
            return command
        found = registry().seek("command", cmd_name)
        return _made(found) if found else None

    def invoke(self, ctx: click.Context) -> Any:
        # Not left to click, which takes a broken pipe for a failure and has no words for a group of errors.
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BaseException as error:
            raise click.exceptions.Exit(report(error)) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, without importing a single command."""
        lines = {name: line or "From a plugin." for name, (_, line) in load_commands().items()}
        lines |= {name: line for name, (_, _, line) in BUILT_IN.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, lines[name]) for name in self.list_commands(ctx)])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), meaning) for code, meaning in MEANINGS.items()])
        formatter.write_paragraph()
        formatter.write_text("AMB_DEBUG=1 shows tracebacks and log lines.")


def _made(entry: Entry) -> click.Command:
    """A plugin's command. Raises: PluginError if it makes none."""
    try:
        command = entry.make()
    except Exception as error:
        raise PluginError(
            f"the command {entry.name!r} of the plugin {entry.owner} is broken: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(command, click.Command):
        raise PluginError(
            f"the command {entry.name!r} of the plugin {entry.owner} is broken: its factory returned {command!r}"
        )
    return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=examples(
        "amb demo",
        """amb publish orders.created '{"id": 7}' --url redis://localhost:6379""",
        "amb subscribe 'agents.#' --json",
        "amb doctor --broker redis",
    ),
)
@click.version_option(package_name="amb-core", prog_name="amb", message="%(prog)s %(version)s")
def amb() -> None:
    """The Agent Message Bus: publish, subscribe, ask, and look after brokers.

    Every command takes --broker NAME and --url URL; without them AMB_BROKER and the broker's own variables
    decide, else the memory broker, which lives inside one process.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``amb``; returns the exit code. Never raises."""
    with abrupt():
        try:
            code = amb.main(args=None if arguments is None else list(arguments), prog_name="amb", standalone_mode=False)
            sys.stdout.flush()
        except click.exceptions.Exit as end:
            return end.exit_code
        except BaseException as error:
            return report(error)
        return code if isinstance(code, int) else 0
