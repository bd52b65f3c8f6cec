"""The administration: entities made, shown and deleted by Atom XML over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from . import atom
from .auth import MANAGE
from .entities import Namespace, not_found
from .entry import ACTIVE, DEFERRED, SCHEDULED, Refusal
from .queue import Queue
from .topics import Rule, Subscription, Topic

if TYPE_CHECKING:
    from .service import Service

Answer = tuple[int, str]
_SUBSCRIPTIONS, _RULES, _LISTS = "/subscriptions", "/rules", "$resources/"


def administrate(service: Service, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """Answer a request. Returns: a status and a document."""
    split = urlsplit(target)
    path = unquote(split.path).strip("/")
    url = f"https://{headers.get('host', '')}/{path}"
    try:
        if MANAGE not in service.auth.rights(headers.get("authorization", ""), url):
            raise Refusal("amqp:unauthorized-access", "Manage,EntityRead claims are required.", 401)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        return _Request(service.namespace, url, path, query).answer(method, "if-match" in headers, body)
    except Refusal as refusal:
        return refusal.status, atom.failure(refusal.status, refusal.description)
    except ValueError as error:
        return 400, atom.failure(400, f"The request has a value that cannot be read: {error}")


class _Request:
    """One request: the parts of its path, and what it is for."""

    def __init__(self, namespace: Namespace, url: str, path: str, query: Mapping[str, str]) -> None:
        self._namespace, self._url, self._query = namespace, url, query
        self.path = path
        self._entity, self._subscription, self._rule = _parts(path)

    def answer(self, method: str, update: bool, body: bytes) -> Answer:
        if method == "GET":
            return self._get()
        if method == "PUT":
            return self._update(body) if update else self._create(body)
        if method == "DELETE":
            return self._delete()
        raise Refusal("amqp:not-implemented", f"{method} is not emulated.", 405)

    def _get(self) -> Answer:
        if self.path.lower() == "$namespaceinfo":
            return 200, atom.entry("amb", self._url, atom.describe_namespace("amb"))
        entries = self._list()
        if entries is None:
            return 200, self._show()
        start, count = int(self._query.get("$skip", "0")), int(self._query.get("$top", "100"))
        more = f"{self._url}?$skip={start + count}&$top={count}" if len(entries) > start + count else None
        return 200, atom.feed(entries[start : start + count], self._url, more)

    def _list(self) -> list[str] | None:
        """The entities of a list, None if the path is of one entity."""
        key, namespace = self.path.lower(), self._namespace
        if key == _LISTS + "queues":
            return [_queue(namespace.names[name], self._url, queue) for name, queue in namespace.queues.items()]
        if key == _LISTS + "topics":
            return [_topic(self._url, topic) for topic in namespace.topics.values()]
        if key.endswith(_SUBSCRIPTIONS):
            found = namespace.topic(self.path[: -len(_SUBSCRIPTIONS)]).subscriptions.values()
            return [_subscribed(self._url, each) for each in found]
        if key.endswith(_RULES) and self._subscription:
            rules = namespace.subscription(self._entity, self._subscription).rules.values()
            return [_rule(self._url, rule) for rule in rules]
        return None

    def _show(self) -> str:
        namespace, key = self._namespace, self._entity.lower()
        if self._rule:
            return _rule(self._url, self._found_rule())
        if self._subscription:
            return _subscribed(self._url, namespace.subscription(self._entity, self._subscription))
        if key in namespace.queues:
            return _queue(namespace.names[key], self._url, namespace.queues[key])
        if key in namespace.topics:
            return _topic(self._url, namespace.topics[key])
        # The service lists nothing, rather than say that there is nothing.
        return atom.feed([], self._url, None)

    def _create(self, body: bytes) -> Answer:
        given = atom.description(body)
        namespace = self._namespace
        if self._rule:
            namespace.add_rule(self._entity, self._subscription, self._rule, atom.rule_filter(given))
        elif self._subscription:
            namespace.create_subscription(self._entity, self._subscription, atom.queue_options(given))
        elif atom.kind(given) == "TopicDescription":
            namespace.create_topic(self._entity, atom.topic_options(given))
        else:
            namespace.create_queue(self._entity, atom.queue_options(given))
        return 201, self._show()

    def _update(self, body: bytes) -> Answer:
        given = atom.description(body)
        namespace, key = self._namespace, self._entity.lower()
        if self._rule:
            self._found_rule()
            filter_ = atom.rule_filter(given)
            namespace.remove_rule(self._entity, self._subscription, self._rule)
            namespace.add_rule(self._entity, self._subscription, self._rule, filter_)
        elif self._subscription or key in namespace.queues:
            namespace.update(self.path, atom.queue_options(given))
        else:
            namespace.update_topic(self._entity, atom.topic_options(given))
        return 200, self._show()

    def _delete(self) -> Answer:
        if self._rule:
            self._namespace.remove_rule(self._entity, self._subscription, self._rule)
        elif self._subscription or self._entity.lower() in {**self._namespace.queues, **self._namespace.topics}:
            self._namespace.delete(self.path)
        else:
            raise not_found(self.path)
        return 200, ""

    def _found_rule(self) -> Rule:
        rule = self._namespace.subscription(self._entity, self._subscription).rules.get(self._rule.lower())
        if rule is None:
            raise not_found(self.path)
        return rule


def _parts(path: str) -> tuple[str, str, str]:
    """The queue or topic, the subscription and the rule in a path."""
    lower = path.lower()
    at = lower.find(_SUBSCRIPTIONS + "/")
    if at < 0:
        return path, "", ""
    rest = path[at + len(_SUBSCRIPTIONS) + 1 :]
    name, _, rule = rest.partition("/")
    return path[:at], name, rule[len(_RULES) :] if rule.lower().startswith(_RULES[1:] + "/") else ""


def _queue(name: str, url: str, queue: Queue) -> str:
    return atom.entry(name, url, atom.describe_queue("QueueDescription", queue.options, _counts(queue)))


def _topic(url: str, topic: Topic) -> str:
    content = atom.describe_topic(topic.options, len(topic.subscriptions), _counts(topic.waiting))
    return atom.entry(topic.name, url, content)


def _subscribed(url: str, subscription: Subscription) -> str:
    queue = subscription.queue
    content = atom.describe_queue("SubscriptionDescription", queue.options, _counts(queue))
    return atom.entry(subscription.name, url, content)


def _rule(url: str, rule: Rule) -> str:
    return atom.entry(rule.name, url, atom.describe_rule(rule))


def _counts(queue: Queue) -> dict[str, int]:
    states = [entry.state for entry in queue.entries.values()]
    return {
        "ActiveMessageCount": states.count(ACTIVE) + states.count(DEFERRED),
        "DeadLetterMessageCount": len(queue.dead_letters.entries) if queue.dead_letters else 0,
        "ScheduledMessageCount": states.count(SCHEDULED),
    }
