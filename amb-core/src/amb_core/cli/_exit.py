"""Exit codes, and the one line a failed command says (docs/cli.md, "Exit codes")."""

from __future__ import annotations

import os
import sys
import traceback
from enum import IntEnum

import click

from .. import errors


class ExitCode(IntEnum):
    """What the shell sees; `MEANINGS` says what each is."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    TIMEOUT = 5
    REFUSED = 6
    UNSUPPORTED = 7
    REMOTE = 8
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "failed: the demo's account does not balance, a conformance case failed, a bug",
    ExitCode.USAGE: "usage or configuration: an option, a payload, a variable, a URL",
    ExitCode.UNREACHABLE: "the broker is out of reach",
    ExitCode.NOT_FOUND: "no such thing, or not installed: a broker, a module, a folder, a dead letter",
    ExitCode.TIMEOUT: "time ran out, or nobody is there to answer",
    ExitCode.REFUSED: "the broker refused the credentials, or what was asked with them",
    ExitCode.UNSUPPORTED: "not supported by this broker",
    ExitCode.REMOTE: "the responder failed",
    ExitCode.INTERRUPTED: "Ctrl-C or SIGTERM",
    ExitCode.BROKEN_PIPE: "nobody reads the output any more",
}


#: The first match counts, so the special comes before the general.
_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (errors.PluginError, ExitCode.NOT_FOUND),
    (errors.NotFound, ExitCode.NOT_FOUND),
    (errors.UnsupportedError, ExitCode.UNSUPPORTED),
    (errors.AuthenticationError, ExitCode.REFUSED),
    (errors.AccessDenied, ExitCode.REFUSED),
    (errors.RemoteError, ExitCode.REMOTE),
    (errors.NoResponders, ExitCode.TIMEOUT),
    (TimeoutError, ExitCode.TIMEOUT),
    (ConnectionError, ExitCode.UNREACHABLE),
    (errors.ConfigurationError, ExitCode.USAGE),
    (ValueError, ExitCode.USAGE),
)


class CommandFailed(click.ClickException):
    """A command's own failure, with the code it ends in."""

    def __init__(self, message: str, code: int = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = int(code)


def debugging() -> bool:
    """``AMB_DEBUG`` is set: tracebacks and log lines are wanted."""
    return os.environ.get("AMB_DEBUG", "") not in ("", "0")


def exit_code(error: BaseException) -> int:
    """The exit code `error` stands for."""
    if isinstance(error, CommandFailed):
        return error.code
    if isinstance(error, click.ClickException):
        return error.exit_code
    return next((int(code) for kind, code in _CODES if isinstance(error, kind)), int(ExitCode.FAILED))


def report(error: BaseException) -> int:
    """Say `error` in one line on stderr and return its exit code. With ``AMB_DEBUG=1``, the traceback first."""
    error = _only(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return ExitCode.INTERRUPTED
    if isinstance(error, BrokenPipeError) and not isinstance(error, errors.AmbError):
        _silence_stdout()
        return ExitCode.BROKEN_PIPE
    if debugging():
        traceback.print_exception(error)
    click.echo(f"{_command(error)}: {_text(error)}", err=True)
    return exit_code(error)


def _only(error: BaseException) -> BaseException:
    """What a group holds, if it is one error in wrappers; a group of several says its first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _command(error: BaseException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else click.get_current_context(silent=True)
    return context.command_path if context else "amb"


def _text(error: BaseException) -> str:
    if isinstance(error, click.UsageError):
        return f"{_one_line(error.format_message())} (see '{_command(error)} --help')"
    if isinstance(error, click.ClickException):
        return _one_line(error.format_message())
    text = _one_line(str(error))
    expected = isinstance(error, (errors.AmbError, ValueError, OSError)) and text
    return text if expected else f"{type(error).__name__}: {text or 'no details'}; AMB_DEBUG=1 shows where"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _silence_stdout() -> None:
    """Keep the interpreter's last flush from complaining about the pipe that nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
