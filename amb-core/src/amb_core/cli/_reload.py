"""Inside a worker process: ends it when its parent dies or, if asked, when a source file changes."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

#: The exit code by which a worker says: start me again, my source has changed.
RELOAD = 75
INTERVAL = 0.5


class Guard(threading.Thread):
    """Sends SIGTERM to its own process when the time has come; the bus then drains as for anybody's SIGTERM.

    To be made early, when the parent is there for sure, and started when the program's files are loaded."""

    def __init__(self, reload: bool) -> None:
        super().__init__(name="amb-guard", daemon=True)
        self._reload, self._parent = reload, os.getppid()
        self._seen: dict[str, int] = {}
        #: A source file has changed.
        self.changed = False

    def start(self) -> None:
        """Look at the files as they are now, and begin to watch."""
        self._seen = _times(loaded_files()) if self._reload else {}
        super().start()

    def run(self) -> None:
        """The thread."""
        while os.getppid() == self._parent:
            time.sleep(INTERVAL)
            if self._reload:
                now = _times(loaded_files())
                self.changed = any(now[path] != then for path, then in self._seen.items() if path in now)
                if self.changed:
                    break
                self._seen = now
        os.kill(os.getpid(), signal.SIGTERM)


def wait_for_change(error: BaseException, since: int) -> None:
    """Block until a loaded source file, or one that `error` came from, has changed since that time (nanoseconds
    since the epoch) or changes, or the parent is gone."""
    files, parent = {*loaded_files(), *_blamed(error)}, os.getppid()
    before = _times(files)
    if any(changed >= since for changed in before.values()):
        return
    while _times(files) == before and os.getppid() == parent:
        time.sleep(INTERVAL)


def loaded_files() -> set[str]:
    """The program's own source files: what is loaded and neither the standard library nor installed."""
    library = sysconfig.get_paths()["stdlib"]
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return {file for file in files if file and not file.startswith(library) and "site-packages" not in file}


def _blamed(error: BaseException | None) -> Iterable[str]:
    while error is not None:
        if isinstance(error, SyntaxError) and error.filename:
            yield error.filename
        yield from (frame.filename for frame in traceback.extract_tb(error.__traceback__))
        error = error.__cause__ or error.__context__


def _times(files: Iterable[str]) -> dict[str, int]:
    times: dict[str, int] = {}
    for file in files:
        try:
            times[file] = Path(file).stat().st_mtime_ns
        except OSError:  # an editor that saves by renaming leaves a gap
            continue
    return times
