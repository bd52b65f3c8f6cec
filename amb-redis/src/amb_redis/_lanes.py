"""What a feed knows about the streams it reads and the deliveries it holds."""

from __future__ import annotations

import msgspec
from amb_core.broker import Incoming

__all__ = ["Delivery", "Lane", "Topic"]


class Delivery(msgspec.Struct, eq=False):
    """One delivery in our hands; the token of its message."""

    lane: Lane
    id: bytes
    attempt: int
    position: str
    #: The lease began at or after this (monotonic).
    since: float
    done: bool = False
    #: Settling it was tried and the outcome is not known.
    tried: bool = False
    #: Kept where the process redelivers.
    incoming: Incoming | None = None


class Lane:
    """One stream of a topic."""

    __slots__ = ("added", "again", "key", "last", "name", "open", "read", "tail", "topic")

    def __init__(self, topic: Topic, name: bytes, again: bool = False) -> None:
        self.topic = topic
        self.name = name
        self.key = topic.base + name
        #: A group's own stream of what it gets again; entries are deleted when they are settled.
        self.again = again
        self.tail = f"/{name.decode()}/{topic.name}"
        #: Nothing up to here is news.
        self.last = b"0-0"
        self.open: dict[bytes, Delivery] = {}
        #: Entries ever added when reading began, and read since: their sum tells what was trimmed unread.
        self.added = 0
        self.read = 0

    def begin(self, last: bytes, added: int) -> None:
        """Nothing up to here is news."""
        self.last, self.added = last, added


class Topic:
    """The lanes of one topic, for one group."""

    __slots__ = ("base", "bell", "express", "hot", "lanes", "locked", "name", "normal", "overtaken", "retried",
                 "sweep", "wake")  # fmt: skip

    def __init__(self, name: str, base: bytes, group: bytes) -> None:
        self.name = name
        self.base = base
        self.express = Lane(self, b"x")
        self.normal = Lane(self, b"s")
        self.retried = Lane(self, b"r:" + group, again=True)
        self.lanes = {lane.name: lane for lane in (self.express, self.normal, self.retried)}
        #: The last news of the topic's bell.
        self.bell = b"0-0"
        #: It is time to read, news or not: something is due, a lease or a lock may have ended (monotonic).
        self.wake = 0.0
        #: It is time to look for what others have left behind (monotonic).
        self.sweep = 0.0
        #: The last read brought as many normal messages as were asked for, and hardly anything else.
        self.hot = False
        #: Another member of an ordered group has the lock.
        self.locked = False
        #: An ordered group: all that the previous member left behind is ours.
        self.overtaken = False
