"""The namespace: queues, topics and their subscriptions, found by path."""

from __future__ import annotations

import time
from collections.abc import Iterator

import anyio

from .entry import QueueOptions, Refusal
from .filters import parse_filter
from .journal import Journal
from .queue import Queue
from .topics import Rule, Subscription, Topic, TopicOptions

_DEAD = "/$deadletterqueue"
_SUBSCRIPTIONS = "/subscriptions/"
_LONGEST = {"queue": 260, "topic": 260, "subscription": 50, "rule": 50}
DEFAULT_RULE = "$Default"


class Namespace:
    """All entities. Names are compared without regard to case."""

    def __init__(self, journal: Journal, *, idle_scale: float = 1.0) -> None:
        self._journal, self._idle_scale = journal, idle_scale
        self.queues: dict[str, Queue] = {}
        self.topics: dict[str, Topic] = {}
        #: Names as they were given.
        self.names: dict[str, str] = {}

    # Making and deleting.

    def create_queue(self, name: str, options: QueueOptions) -> Queue:
        """A new queue. Raises: Refusal if there is an entity of this name."""
        self._check_new("queue", name)
        self._journal.write("queue", name, options)
        queue = self._queue(name, options)
        self.queues[name.lower()], self.names[name.lower()] = queue, name
        return queue

    def create_topic(self, name: str, options: TopicOptions) -> Topic:
        """A new topic. Raises: Refusal if there is an entity of this name."""
        self._check_new("topic", name)
        self._journal.write("topic", name, options)
        topic = Topic(name, options, self._journal)
        self.topics[name.lower()], self.names[name.lower()] = topic, name
        return topic

    def create_subscription(
        self, topic_name: str, name: str, options: QueueOptions, rules: dict[str, dict[str, object]] | None = None
    ) -> Subscription:
        """A new subscription, with a rule for everything unless rules are given. Raises: Refusal."""
        topic = self.topic(topic_name)
        _check_name("subscription", name)
        if name.lower() in topic.subscriptions:
            raise _exists(f"{topic.name}/Subscriptions/{name}")
        filters = {rule: parse_filter(given) for rule, given in (rules or {}).items()}
        self._journal.write("subscription", topic.name, name, options)
        subscription = Subscription(name, self._queue(f"{topic.name}/Subscriptions/{name}", options))
        topic.subscriptions[name.lower()] = subscription
        topic.changed()
        if rules is None:
            self.add_rule(topic_name, name, DEFAULT_RULE, {"true": True})
        for rule in filters:
            self.add_rule(topic_name, name, rule, (rules or {})[rule])
        return subscription

    def add_rule(self, topic_name: str, name: str, rule: str, given: dict[str, object]) -> Rule:
        """A new rule of a subscription. Raises: Refusal."""
        subscription = self.subscription(topic_name, name)
        if rule != DEFAULT_RULE:
            _check_name("rule", rule)
        if rule.lower() in subscription.rules:
            raise _exists(f"{topic_name}/Subscriptions/{name}/Rules/{rule}")
        made = Rule(rule, given, parse_filter(given))
        subscription.rules[rule.lower()] = made
        self.topic(topic_name).changed()
        self._journal.write("rule", topic_name, name, rule, given)
        return made

    def remove_rule(self, topic_name: str, name: str, rule: str) -> None:
        """Raises: Refusal if there is no such rule."""
        if self.subscription(topic_name, name).rules.pop(rule.lower(), None) is None:
            raise not_found(f"{topic_name}/Subscriptions/{name}/Rules/{rule}")
        self.topic(topic_name).changed()
        self._journal.write("no-rule", topic_name, name, rule)

    def delete(self, path: str) -> None:
        """Delete a queue, a topic with its subscriptions, or a subscription. Raises: Refusal."""
        key = path.lower()
        gone = Refusal("amqp:resource-deleted", f"The messaging entity '{path}' was deleted.", 404)
        if key in self.queues:
            _close(self.queues.pop(key), gone)
        elif key in self.topics:
            topic = self.topics.pop(key)
            _close(topic.waiting, gone)
            for subscription in topic.subscriptions.values():
                _close(subscription.queue, gone)
        else:
            owner, _, name = key.partition(_SUBSCRIPTIONS)
            self.subscription(owner, name)
            topic = self.topics[owner]
            _close(topic.subscriptions.pop(name).queue, gone)
            topic.changed()
        self._journal.write("delete", path)

    def update(self, path: str, options: QueueOptions) -> None:
        """Give a queue or a subscription other properties. Raises: Refusal."""
        queue = self.source(path)
        if options.requires_session != queue.options.requires_session:
            raise Refusal("com.microsoft:argument-error", "RequiresSession cannot be changed.")
        queue.options = options
        self._journal.write("update", path, options)

    def update_topic(self, name: str, options: TopicOptions) -> None:
        """Give a topic other properties. Raises: Refusal."""
        topic = self.topic(name)
        topic.options = options
        topic.waiting.options = QueueOptions(duplicate_window=options.duplicate_window)
        self._journal.write("update-topic", name, options)

    # Finding.

    def topic(self, name: str) -> Topic:
        """Raises: Refusal if there is no such topic."""
        found = self.topics.get(name.lower())
        if found is None:
            raise not_found(name)
        return found

    def subscription(self, topic: str, name: str) -> Subscription:
        """Raises: Refusal if there is no such subscription."""
        found = self.topic(topic).subscriptions.get(name.lower())
        if found is None:
            raise not_found(f"{topic}/Subscriptions/{name}")
        return found

    def target(self, path: str) -> Queue | Topic:
        """Where a sender may send. Raises: Refusal."""
        found = self.queues.get(path.lower()) or self.topics.get(path.lower())
        if found is None:
            raise not_found(path)
        return found

    def source(self, path: str) -> Queue:
        """From where a receiver may receive. Raises: Refusal."""
        key = path.lower()
        plain = key.removesuffix(_DEAD)
        topic, _, name = plain.partition(_SUBSCRIPTIONS)
        found = self.subscription(topic, name).queue if name else self.queues.get(plain)
        if found is None:
            raise not_found(path)
        if plain == key:
            return found
        assert found.dead_letters is not None
        return found.dead_letters

    def rules_of(self, path: str) -> tuple[str, str]:
        """The topic and the subscription in a path. Raises: Refusal if it is none of a subscription."""
        topic, _, name = path.lower().partition(_SUBSCRIPTIONS)
        if not name:
            raise Refusal("amqp:not-allowed", f"'{path}' is no subscription, and has no rules.")
        return topic, name

    # Ageing.

    async def delete_idle(self) -> None:
        """Delete what nobody used for as long as it says, for ever."""
        while True:
            await anyio.sleep(0.2)
            for path, idle, used in list(self._ageing()):
                if time.monotonic() - used > idle * self._idle_scale:
                    self.delete(path)
            self._journal.flush()

    def _ageing(self) -> Iterator[tuple[str, float, float]]:
        queues = list(self.queues.values())
        for topic in self.topics.values():
            if topic.options.auto_delete_on_idle is not None:
                yield topic.name, topic.options.auto_delete_on_idle, topic.waiting.used
            queues += [subscription.queue for subscription in topic.subscriptions.values()]
        for queue in queues:
            if queue.consumers:
                queue.used = time.monotonic()
            if queue.options.auto_delete_on_idle is not None:
                yield queue.path, queue.options.auto_delete_on_idle, queue.used

    def _queue(self, path: str, options: QueueOptions) -> Queue:
        dead_options = QueueOptions(lock_duration=options.lock_duration, max_delivery_count=2**31)
        dead = Queue(path + "/$DeadLetterQueue", dead_options, self._journal)
        return Queue(path, options, self._journal, dead_letters=dead)

    def _check_new(self, kind: str, name: str) -> None:
        _check_name(kind, name)
        if name.lower() in self.queues or name.lower() in self.topics:
            raise _exists(name)


def not_found(path: str) -> Refusal:
    """There is no such entity."""
    return Refusal("amqp:not-found", f"The messaging entity '{path}' could not be found.", 404)


def _exists(path: str) -> Refusal:
    return Refusal("com.microsoft:entity-already-exists", f"The messaging entity '{path}' exists already.", 409)


def _check_name(kind: str, name: str) -> None:
    legal = name and all(letter.isalnum() or letter in "._-/~" for letter in name)
    if not legal or len(name) > _LONGEST[kind] or (kind in ("subscription", "rule") and "/" in name):
        raise Refusal(
            "com.microsoft:argument-error", f"'{name}' is no name of a {kind}: {_LONGEST[kind]} letters at most."
        )


def _close(queue: Queue, refusal: Refusal) -> None:
    queue.close(refusal)
    if queue.dead_letters is not None:
        queue.dead_letters.close(refusal)
