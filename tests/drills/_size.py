"""How much of everything: enough to see the fault in a shared run, or what is promised."""

from __future__ import annotations

import os

import msgspec


class Size(msgspec.Struct, frozen=True):
    """The numbers of the drills."""

    #: a: consumers killed one after the other, and what each holds.
    kills: int
    held: int
    #: b: restarts of the broker while so many messages are published.
    restarts: int
    restarted_messages: int
    #: c: how often all three members are replaced.
    generations: int
    #: d: messages, one in a hundred of them poison.
    poisoned_messages: int
    #: f: topics.
    topics: int
    #: g: what each of a hundred publishers sends.
    flood: int


SMALL = Size(
    kills=2, held=7, restarts=1, restarted_messages=600, generations=1, poisoned_messages=800, topics=60, flood=20
)
FULL = Size(
    kills=20, held=7, restarts=3, restarted_messages=3000, generations=3, poisoned_messages=5000, topics=500, flood=100
)


def chosen() -> Size:
    """What ``AMB_DRILLS`` asks for: ``full``, or ``small`` (the default). Raises: ValueError for anything else."""
    sizes = {"full": FULL, "small": SMALL}
    name = os.environ.get("AMB_DRILLS") or "small"
    if name not in sizes:
        raise ValueError(f"AMB_DRILLS is {name!r}: it may be full or small")
    return sizes[name]
