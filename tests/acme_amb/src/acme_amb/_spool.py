"""Files: ``<folder>/<queue>/new/<name>`` waits, ``…/taken/<name>`` is with a member since the file's time.

A name is ``<time>-<number>.<attempt>.<claim>``. Every step is one rename, which happens once or not at all.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path

from amb_core.broker import Incoming, Outgoing
from amb_core.errors import AccessDenied, LeaseLost, Unavailable
from amb_core.topics import compile_pattern

#: Seconds without a sign of life after which an ungrouped subscriber counts as dead.
SILENCE = 60.0


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """The system's errors as AMB's."""
    try:
        yield
    except PermissionError as error:
        raise AccessDenied(f"{folder}: {error.strerror}") from error
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror or error}") from error


class Spool:
    """The whole folder: who listens, and how a message gets to them."""

    def __init__(self, folder: Path, sync: bool) -> None:
        self._folder, self._sync = folder, sync
        self._drafts, self._trash = folder / ".drafts", folder / ".trash"
        for path in (self._drafts, self._trash):
            path.mkdir(parents=True, exist_ok=True)
        self._patterns: dict[str, str] = {}
        self._numbers = count()

    def put(self, message: Outgoing) -> None:
        """Store a message for everybody who wants it."""
        names = [queue for queue, pattern in self._queues() if compile_pattern(pattern)(message.topic)]
        if not names:
            return
        name = f"{time.time_ns():020d}-{next(self._numbers):08d}{secrets.token_hex(4)}.0.0"
        draft = self._drafts / name
        head = json.dumps({"topic": message.topic, "headers": message.headers, "key": message.key})
        with draft.open("wb") as file:
            file.write(head.encode() + b"\n" + message.body)
            if self._sync:
                file.flush()
                os.fsync(file.fileno())
        for queue in names[1:]:
            with suppress(FileNotFoundError):  # whoever listened there has just left
                os.link(draft, self._folder / queue / "new" / name)
        try:
            draft.rename(self._folder / names[0] / "new" / name)
        except FileNotFoundError:
            draft.unlink()

    def _queues(self) -> Iterator[tuple[str, str]]:
        for entry in os.scandir(self._folder):
            if not entry.name.startswith("."):
                if entry.name not in self._patterns:
                    try:
                        self._patterns[entry.name] = (Path(entry) / "pattern").read_text()
                    except FileNotFoundError:
                        continue
                yield entry.name, self._patterns[entry.name]

    def join(self, pattern: str, group: str | None) -> Path:
        """The folder of a group's queue, or of a new one for a subscriber without a group."""
        self._bury()
        private = secrets.token_hex(8)
        name = f"one-{private}" if group is None else "all-" + sha256(f"{group}\n{pattern}".encode()).hexdigest()[:24]
        queue = self._folder / name
        if not queue.exists():
            made = self._drafts / private
            for path in (made / "new", made / "taken"):
                path.mkdir(parents=True)
            (made / "pattern").write_text(pattern)
            try:
                made.rename(queue)
            except OSError:  # another member was faster
                shutil.rmtree(made)
        return queue

    def drop(self, queue: Path) -> None:
        """Remove a queue, also while somebody puts something into it."""
        grave = self._trash / f"{queue.name}-{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):
            queue.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)

    def _bury(self) -> None:
        for queue in self._folder.glob("one-*"):
            with suppress(FileNotFoundError):
                if time.time() - (queue / "pattern").stat().st_mtime > SILENCE:
                    self.drop(queue)


class Queue:
    """What one group, or one subscriber without a group, is still to get."""

    def __init__(self, folder: Path, lease: float | None) -> None:
        self._new, self._taken, self._pattern = folder / "new", folder / "taken", folder / "pattern"
        self._lease = lease
        self._look = 0.0
        # What there was at the last look, the oldest last: looking anew for each delivery would not scale.
        self._names: list[str] = []

    def alive(self) -> None:
        """A sign of life. Raises: FileNotFoundError if the queue was given up."""
        os.utime(self._pattern)

    def take(self, limit: int) -> list[Incoming]:
        """Up to `limit` deliveries, oldest first."""
        self._collect()
        found: list[Incoming] = []
        if not self._names:
            self._names = sorted(os.listdir(self._new), reverse=True)
        while self._names and len(found) < limit:
            name = self._names.pop()
            stem, attempt, _ = name.split(".")
            token = f"{stem}.{int(attempt) + 1}.{secrets.token_hex(4)}"
            with suppress(FileNotFoundError):  # another member was faster
                # Before it moves: once there, an old time would look like a lease that ran out.
                os.utime(self._new / name)
                (self._new / name).rename(self._taken / token)
                found.append(self._read(token, int(attempt) + 1))
        return found

    def _read(self, token: str, attempt: int) -> Incoming:
        head, _, body = (self._taken / token).read_bytes().partition(b"\n")
        about = json.loads(head)
        return Incoming(about["topic"], body, about["headers"], token, about["key"], attempt, token.partition(".")[0])

    def _collect(self) -> None:
        """Take back what nobody has settled or extended within the lease."""
        now = time.time()
        if self._lease is None or now < self._look:
            return
        self._look = now + self._lease / 10
        for name in os.listdir(self._taken):
            with suppress(FileNotFoundError):
                if now - (self._taken / name).stat().st_mtime > self._lease:
                    self.give_back(name, started=True)

    def remove(self, token: str) -> None:
        """Settled for good. Raises: LeaseLost."""
        with self._ours(token):
            (self._taken / token).unlink()

    def give_back(self, token: str, *, started: bool) -> None:
        """Let it be taken again, with its attempt spent if a handler `started`. Raises: LeaseLost."""
        stem, attempt, claim = token.split(".")
        with self._ours(token):
            (self._taken / token).rename(self._new / f"{stem}.{int(attempt) - (not started)}.{claim}")

    def extend(self, token: str) -> None:
        """Begin the lease anew. Raises: LeaseLost."""
        with self._ours(token):
            os.utime(self._taken / token)

    @contextmanager
    def _ours(self, token: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise LeaseLost(f"{self._taken.parent}: {token} was taken back") from None
