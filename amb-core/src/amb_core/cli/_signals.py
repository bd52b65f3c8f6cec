"""Ctrl-C and SIGTERM, whenever they come: quiet, and 130."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import anyio

from ._exit import ExitCode


@contextmanager
def abrupt() -> Iterator[None]:
    """Until `graceful`, a signal ends the process where it is: there is nothing to clean up yet, and an exception in
    the middle of an import comes out as something else. Restores what was there before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] is signal.default_int_handler:
        for number in before:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def graceful() -> None:
    """From now on Ctrl-C and SIGTERM cancel what runs in an event loop, or raise KeyboardInterrupt."""
    anyio.run(anyio.sleep, 0)  # imports what a loop needs
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _like_ctrl_c)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(ExitCode.INTERRUPTED)


def _like_ctrl_c(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
