"""``amb run module:bus``: a program's bus, in one process or several."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
import traceback
from typing import Any

import anyio
import click

from .. import MessageBus
from .._advice import did_you_mean
from ._common import SECONDS, describe, examples, hand_down, note
from ._exit import CommandFailed, ExitCode, report
from ._reload import RELOAD, Guard, wait_for_change
from ._signals import graceful
from ._workers import Crew


@click.command(
    epilog=examples(
        "amb run app:bus                       # the object `bus` in app.py",
        "amb run shop.agents:make_bus          # a function that returns the bus",
        "amb run app:bus --workers 4           # four processes, started again when they die",
        "amb run app:bus --reload              # starts again when a loaded source file changes",
        "AMB_BROKER=redis amb run app:bus",
        "amb run app:bus --url redis://localhost:6379",
    )
)
@click.argument("target", metavar="MODULE:BUS")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="How many processes.")
@click.option("--reload", "reload", is_flag=True, help="Start again when a loaded Python file changes.")
@click.option(
    "--grace",
    metavar="S",
    type=SECONDS,
    default=40.0,
    show_default=True,
    help="Seconds a worker may take to end before it is killed.",
)
@click.option("--broker", metavar="NAME", help="Set AMB_BROKER for the program.")
@click.option("--url", metavar="URL", help="The same, as a URL.")
@click.option("--child", type=int, hidden=True, help="Internal: this is worker number CHILD.")
def run(
    target: str, workers: int, reload: bool, grace: float, broker: str | None, url: str | None, child: int | None
) -> None:
    """Connect the bus of a program and consume until SIGINT or SIGTERM; then drain and end with 0.

    MODULE is found from the current folder. --broker and --url count for a program that does not name its
    broker itself.
    """
    graceful()
    hand_down(broker, url)
    sys.path.insert(0, os.getcwd())
    if child is not None:
        _work(target, reload, child)
    elif workers > 1 or reload:
        command = [sys.executable, "-m", "amb_core.cli", "run", target, *(["--reload"] if reload else [])]
        code = anyio.run(Crew(command, workers, grace).run)
        raise click.exceptions.Exit(code)
    else:
        _serve(load(target), target, single=True)


def _work(target: str, reload: bool, child: int) -> None:
    """One worker process. Ends when its parent is gone; with `reload`, when a source file changes."""
    guard, begun = Guard(reload), time.time_ns()
    # Bytecode knows its source by size and second: a change right after the last would go unseen.
    sys.dont_write_bytecode |= reload
    try:
        bus = load(target)
        guard.start()
        _serve(bus, target, single=child == 0)
    except Exception as error:
        if not reload:
            raise
        report(error)
        note("waiting for a source file to change")
        wait_for_change(error, begun)
        raise click.exceptions.Exit(RELOAD) from error
    if guard.changed:
        raise click.exceptions.Exit(RELOAD)


def _serve(bus: MessageBus, target: str, single: bool) -> None:
    if not logging.root.handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if single and bus.capabilities.single_process:
        note("this broker lives inside one process: other programs, and further workers, do not see its messages")

    live = False

    async def serve() -> None:
        nonlocal live
        await bus.connect()
        try:
            live = True
            where = f"{describe(bus.broker)}, process {os.getpid()}"
            note(f"{target} is live on {where}; Ctrl-C or SIGTERM drains and ends it")
            await bus.run_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await bus.disconnect()

    try:
        anyio.run(serve)
    except KeyboardInterrupt:  # it came before `run_forever` listened for it
        if not live:
            raise


def load(target: str) -> MessageBus:
    """The bus that `target` ("module:attribute") names, or that the function there returns.

    Raises: CommandFailed in one line, also for a module that raises while it is imported."""
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise click.UsageError(f"{target!r} must look like module:bus")
    found: Any = _import(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise CommandFailed(
                f"{module_name!r} has no {path!r}{did_you_mean(name, _buses(found))}", ExitCode.NOT_FOUND
            )
        found = getattr(found, name)
    if callable(found) and not isinstance(found, MessageBus):
        found = found()
    if not isinstance(found, MessageBus):
        raise CommandFailed(
            f"{target!r} is a {type(found).__name__}, not a MessageBus or a function that returns one", ExitCode.USAGE
        )
    return found


def _buses(module: object) -> list[str]:
    """The names in `module` that could have been meant."""
    return [name for name, value in vars(module).items() if isinstance(value, MessageBus)]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise CommandFailed(
                f"no module {name!r} in {os.getcwd()} or on the Python path", ExitCode.NOT_FOUND
            ) from error
        raise CommandFailed(f"{name!r} cannot be imported: {_last_place(error)}", ExitCode.USAGE) from error
    except Exception as error:
        raise CommandFailed(f"{name!r} cannot be imported: {_last_place(error)}", ExitCode.USAGE) from error


def _last_place(error: BaseException) -> str:
    """File, line and text of an error in the user's program."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {error}"
