"""A namespace as an earlier process left it, from its journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast
from uuid import UUID

import msgspec

from .entities import Namespace
from .entry import Entry, QueueOptions, Refusal
from .journal import Journal
from .message import parse
from .queue import Queue
from .topics import TopicOptions

_Kept = dict[tuple[str, int], Entry]


def restore(namespace: Namespace, journal: Journal) -> None:
    """Do again what the journal says."""
    kept: _Kept = {}
    for kind, *values in journal.read():
        _REPLAY[cast(str, kind)](namespace, kept, values)
    for (path, _), entry in kept.items():
        queue = _queue(namespace, path)
        if queue is not None:
            queue.add(entry)
    journal.replayed()


def _queue(namespace: Namespace, path: str) -> Queue | None:
    topic = namespace.topics.get(path.lower())
    try:
        return topic.waiting if topic is not None else namespace.source(path)
    except Refusal:
        return None


def _create_queue(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    namespace.create_queue(str(values[0]), msgspec.convert(values[1], QueueOptions))


def _create_topic(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    namespace.create_topic(str(values[0]), msgspec.convert(values[1], TopicOptions))


def _create_subscription(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    namespace.create_subscription(str(values[0]), str(values[1]), msgspec.convert(values[2], QueueOptions), {})


def _add_rule(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    topic, name, rule = (str(value) for value in values[:3])
    namespace.add_rule(topic, name, rule, cast("dict[str, object]", values[3]))


def _remove_rule(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    topic, name, rule = (str(value) for value in values)
    namespace.remove_rule(topic, name, rule)


def _update(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    namespace.update(str(values[0]), msgspec.convert(values[1], QueueOptions))


def _update_topic(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    namespace.update_topic(str(values[0]), msgspec.convert(values[1], TopicOptions))


def _delete(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    path = str(values[0]).lower()
    namespace.delete(path)
    for key in [key for key in kept if key[0] == path or key[0].startswith(path + "/")]:
        del kept[key]


def _put(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    path, seq, encoded, enqueued, due, expires, extra, source, state = values
    entry = Entry(cast(int, seq), parse(cast(bytes, encoded)), cast(float, enqueued), state=cast(int, state))
    entry.due, entry.expires = cast("float | None", due), cast("float | None", expires)
    entry.extra, entry.source = cast("dict[str, str]", extra), cast("str | None", source)
    kept[str(path).lower(), entry.seq] = entry


def _meta(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    path, seq, count, state, token, until = values
    entry = kept[str(path).lower(), cast(int, seq)]
    entry.count, entry.state, entry.locked_until = cast(int, count), cast(int, state), cast(float, until)
    entry.token = UUID(bytes=cast(bytes, token)) if token else None


def _gone(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    del kept[str(values[0]).lower(), cast(int, values[1])]


def _seen(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    queue = _queue(namespace, str(values[0]))
    if queue is not None:
        queue.seen(str(values[1]), cast(float, values[2]))


def _session(namespace: Namespace, kept: _Kept, values: list[object]) -> None:
    queue = _queue(namespace, str(values[0]))
    if queue is not None and queue.sessions is not None:
        queue.sessions.get(str(values[1])).state = cast("bytes | None", values[2])


_REPLAY: dict[str, Callable[[Namespace, _Kept, list[object]], None]] = {
    "queue": _create_queue, "topic": _create_topic, "subscription": _create_subscription, "rule": _add_rule,
    "no-rule": _remove_rule, "delete": _delete, "put": _put, "meta": _meta, "gone": _gone, "seen": _seen,
    "session": _session,
    "update": _update, "update-topic": _update_topic,
}  # fmt: skip
