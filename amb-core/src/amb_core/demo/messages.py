"""What the agents say to each other: all that one of them knows of the others."""

from __future__ import annotations

import msgspec


class Commit(msgspec.Struct, frozen=True):
    """``agents.work.commit``: a commit that wants looking at."""

    repository: str
    sha: str
    subject: str
    parents: int

    @property
    def name(self) -> str:
        """What people call it."""
        return f"commit {self.sha[:9]} {self.subject!r}"


class File(msgspec.Struct, frozen=True):
    """``agents.work.file``: a file that wants looking at."""

    repository: str
    path: str

    @property
    def name(self) -> str:
        """What people call it."""
        return f"file {self.path}"


class Order(msgspec.Struct, frozen=True):
    """``agents.work.order``, on the CRITICAL lane: whoever gets it reports at once."""

    number: int


class Obeyed(msgspec.Struct, frozen=True):
    """``agents.report``: an order was carried out. Times are epoch seconds."""

    order_id: str
    number: int
    given: float
    begun: float


class Change(msgspec.Struct, frozen=True):
    """Lines a commit added to and removed from one file."""

    path: str
    added: int
    removed: int


class Review(msgspec.Struct, frozen=True):
    """``agents.review.one`` and ``agents.review.panel``, requests: what do you think of this commit?"""

    subject: str
    changes: list[Change]


class Opinion(msgspec.Struct, frozen=True):
    """The reply to a `Review`."""

    reviewer: str
    content: bool
    reason: str = ""


class Finding(msgspec.Struct, frozen=True):
    """``agents.finding``: one piece of work is done. Times are epoch seconds."""

    work_id: str
    name: str
    attempt: int
    announced: float
    begun: float
    facts: dict[str, int]
    opinions: list[Opinion] = []
    #: Seconds the reviewers took.
    review: float | None = None


class Manifest(msgspec.Struct, frozen=True):
    """``agents.reader.manifest``: the ids and names of work that was announced, some at a time."""

    work: dict[str, str]


class Done(msgspec.Struct, frozen=True):
    """``agents.reader.done``, ``agents.governor.done``: all was announced, all orders were given."""

    total: int
