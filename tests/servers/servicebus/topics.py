"""Topics, their subscriptions, and the rules of those."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from .entry import QueueOptions
from .filters import Correlation, Filter
from .journal import Journal
from .message import Content
from .queue import Queue


class TopicOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A topic's properties; durations in seconds."""

    ttl: float | None = None
    duplicate_window: float | None = None
    auto_delete_on_idle: float | None = None
    user_metadata: str | None = None


class Rule(msgspec.Struct, frozen=True):
    """A rule: its filter as it was given, and what it lets through."""

    name: str
    given: dict[str, object]
    matches: Filter


class Subscription:
    """A queue behind rules."""

    def __init__(self, name: str, queue: Queue) -> None:
        self.name, self.queue = name, queue
        self.rules: dict[str, Rule] = {}

    def wants(self, content: Content) -> bool:
        """Whether any rule lets it through."""
        return any(rule.matches(content) for rule in self.rules.values())


class _Routes:
    """The subscriptions of a topic by what their rules want: trying them all is slow where there are many."""

    def __init__(self, subscriptions: Iterable[Subscription]) -> None:
        #: By the name of a property, and the text it must be.
        self._exact: dict[str, dict[str, list[Subscription]]] = {}
        self._others: list[Subscription] = []
        for subscription in subscriptions:
            keys = {_key(rule.matches) for rule in subscription.rules.values()}
            for key in {None} if None in keys else keys:
                if key is None:
                    self._others.append(subscription)
                else:
                    self._exact.setdefault(key[0], {}).setdefault(key[1], []).append(subscription)

    def of(self, content: Content) -> list[Subscription]:
        """Those that want a message, each once."""
        found = dict.fromkeys(self._others)
        for name, texts in self._exact.items():
            found |= dict.fromkeys(texts.get(str(content.application_value(name)), ()))
        return [subscription for subscription in found if subscription.wants(content)]


def _key(matches: Filter) -> tuple[str, str] | None:
    return matches.key() if isinstance(matches, Correlation) else None


class Topic:
    """What is sent to it goes to each subscription that wants it; what is scheduled waits in a queue of its own."""

    def __init__(self, name: str, options: TopicOptions, journal: Journal) -> None:
        self.name, self.options = name, options
        self.waiting = Queue(name.lower(), QueueOptions(duplicate_window=options.duplicate_window), journal)
        self.waiting.forward = self._fan_out
        self.subscriptions: dict[str, Subscription] = {}
        self._routes: _Routes | None = None

    def changed(self) -> None:
        """There are other subscriptions, or other rules."""
        self._routes = None

    def _wanting(self, content: Content) -> list[Subscription]:
        if self._routes is None:
            self._routes = _Routes(self.subscriptions.values())
        return self._routes.of(content)

    def put(self, content: Content, *, scheduled: float | None = None) -> int:
        """Pass a message on, or keep it until it is due. Returns: its number, 0 if it has none. Raises: Refusal."""
        self.waiting.used = time.monotonic()
        due = scheduled or content.scheduled
        if due is not None and due > time.time():
            return self.waiting.put(content, scheduled=due)
        self.check(content)
        if not self.waiting.duplicate(content):
            self._fan_out(content)
        return 0

    def check(self, content: Content) -> None:
        """Raises: Refusal if a subscription cannot take it."""
        if content.session_id is None:  # all that a queue asks for
            for subscription in self._wanting(content):
                subscription.queue.check(content)

    def _fan_out(self, content: Content) -> None:
        if self.options.ttl is not None:
            ttl = self.options.ttl if content.ttl is None else min(content.ttl, self.options.ttl)
            content = msgspec.structs.replace(content, ttl=ttl)
        for subscription in self._wanting(content):
            subscription.queue.put(content)
