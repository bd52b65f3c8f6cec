"""What the emulator is told at its start."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from .auth import Auth, Key
from .entities import Namespace
from .entry import QueueOptions
from .journal import Journal
from .restore import restore
from .service import Service
from .topics import TopicOptions

T = TypeVar("T", bound=msgspec.Struct)


class QueueConfig(QueueOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A queue."""

    name: str


class SubscriptionConfig(QueueOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A subscription. Without rules it gets everything; a rule is ``{"sql": ...}`` or ``{"correlation": {...}}``."""

    name: str
    rules: dict[str, dict[str, object]] | None = None


class TopicConfig(TopicOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A topic and its subscriptions."""

    name: str
    subscriptions: tuple[SubscriptionConfig, ...] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file that ``--config`` names."""

    queues: tuple[QueueConfig, ...] = ()
    topics: tuple[TopicConfig, ...] = ()
    #: Without keys and bearer tokens everybody may do everything.
    keys: tuple[Key, ...] = ()
    bearers: tuple[str, ...] = ()
    #: Bytes; what the standard tier takes.
    max_message_size: int = 262144
    #: What an idle time is multiplied by, so that tests need not wait the five minutes that are the least.
    idle_scale: float = 1.0


def make(config: Config, journal: Journal) -> Service:
    """A service with what the journal has, and the entities of the configuration that it has not."""
    namespace = Namespace(journal, idle_scale=config.idle_scale)
    restore(namespace, journal)
    for queue in config.queues:
        if queue.name.lower() not in namespace.queues:
            namespace.create_queue(queue.name, _options(queue))
    for topic in config.topics:
        if topic.name.lower() in namespace.topics:
            continue
        namespace.create_topic(topic.name, _shared(topic, TopicOptions))
        for each in topic.subscriptions:
            namespace.create_subscription(topic.name, each.name, _options(each), each.rules)
    journal.flush()
    return Service(namespace, Auth(config.keys, config.bearers), journal, config.max_message_size)


def _options(given: QueueOptions) -> QueueOptions:
    return _shared(given, QueueOptions)


def _shared(given: msgspec.Struct, kind: type[T]) -> T:
    """The part of a configuration that the entity keeps."""
    return msgspec.convert({name: getattr(given, name) for name in kind.__struct_fields__}, kind)
