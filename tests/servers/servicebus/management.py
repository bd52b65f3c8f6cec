"""The requests to ``entity/$management``."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast
from uuid import UUID

from .codec import Described, Int, Timestamp, Ulong, longs, timestamps
from .entities import Namespace
from .entry import Entry, Refusal
from .links import encode_entry
from .message import Content, body_of, milliseconds, parse
from .queue import Queue
from .sessions import Sessions
from .topics import Topic

Body = dict[object, object]
Answer = tuple[int, object]
#: The descriptors of a rule's description, of its filters, and of an action that is none.
_RULE, _EMPTY_ACTION = Ulong(0x0000013700000004), Ulong(0x0000013700000005)
_SQL, _TRUE, _FALSE, _CORRELATION = (Ulong(0x000001370000006 + number) for number in range(4))


def manage(namespace: Namespace, path: str, node: Queue | Topic, request: Content, connection: object) -> Answer:
    """Do what a request asks for that came on `connection`. Returns: a status and a body. Raises: Refusal."""
    operation = str(request.application_value("operation")).removeprefix("com.microsoft:")
    body = cast(Body, body_of(request) or {})
    try:
        if operation in _HOLDING and isinstance(node, Queue):
            _sessions(node).check(str(body["session-id"]), connection)
        return _do(namespace, path, node, operation, body)
    except (KeyError, TypeError) as error:
        raise Refusal("com.microsoft:argument-error", f"The request '{operation}' lacks {error}.") from error


def _do(namespace: Namespace, path: str, node: Queue | Topic, operation: str, body: Body) -> Answer:
    if operation in _RULES:
        return _RULES[operation](namespace, path, body)
    if operation in _SENDING:
        return _SENDING[operation](node, body)
    if operation not in _RECEIVING or isinstance(node, Topic):
        raise Refusal("amqp:not-implemented", f"The operation '{operation}' is not one of '{path}'.", 501)
    return _RECEIVING[operation](node, body)


def _schedule(node: Queue | Topic, body: Body) -> Answer:
    contents = [parse(cast(bytes, cast(Body, each)["message"])) for each in cast("list[object]", body["messages"])]
    for content in contents:
        node.check(content)
    return 200, {"sequence-numbers": longs([node.put(content) for content in contents])}


def _cancel(node: Queue | Topic, body: Body) -> Answer:
    queue = node.waiting if isinstance(node, Topic) else node
    for number in cast("list[int]", body["sequence-numbers"]):
        queue.cancel(number)
    return 200, None


def _renew(queue: Queue, body: Body) -> Answer:
    return 200, {"expirations": timestamps([milliseconds(queue.renew(token)) for token in _tokens(body)])}


def _peek(queue: Queue, body: Body) -> Answer:
    count, start = cast(int, body["message-count"]), cast(int, body["from-sequence-number"])
    session = body.get("session-id")
    found = queue.peek(start, count, None if session is None else str(session))
    return (200, {"messages": [{"message": encode_entry(entry)} for entry in found]}) if found else (204, None)


def _receive(queue: Queue, body: Body) -> Answer:
    deletes = body.get("receiver-settle-mode") == 0
    numbers = cast("list[int]", body["sequence-numbers"])
    return 200, {"messages": [_deferred(queue.take_deferred(number, deletes=deletes)) for number in numbers]}


def _deferred(entry: Entry) -> Body:
    found: Body = {"message": encode_entry(entry)}
    if entry.token is not None:
        found["lock-token"] = entry.token
    return found


def _update(queue: Queue, body: Body) -> Answer:
    status = body["disposition-status"]
    for token in _tokens(body):
        if status == "completed":
            queue.complete(token)
        elif status == "abandoned":
            queue.abandon(token)
        elif status == "defered":
            queue.defer(token)
        elif status == "suspended":
            why = (str(body.get(name) or "") for name in ("deadletter-reason", "deadletter-description"))
            queue.dead_letter(token, *why)
        else:
            raise Refusal("amqp:invalid-field", f"'{status}' is no status of a disposition.")
    return 200, None


def _renew_session(queue: Queue, body: Body) -> Answer:
    return 200, {"expiration": milliseconds(_sessions(queue).renew(str(body["session-id"])))}


def _get_state(queue: Queue, body: Body) -> Answer:
    return 200, {"session-state": _sessions(queue).held(str(body["session-id"])).state}


def _set_state(queue: Queue, body: Body) -> Answer:
    _sessions(queue).set_state(str(body["session-id"]), cast("bytes | None", body["session-state"]))
    return 200, None


def _add_rule(namespace: Namespace, path: str, body: Body) -> Answer:
    description = cast(Body, body["rule-description"])
    namespace.add_rule(*namespace.rules_of(path), str(body["rule-name"]), _filter(description))
    return 200, None


def _remove_rule(namespace: Namespace, path: str, body: Body) -> Answer:
    namespace.remove_rule(*namespace.rules_of(path), str(body["rule-name"]))
    return 200, None


def _list_rules(namespace: Namespace, path: str, body: Body) -> Answer:
    rules = list(namespace.subscription(*namespace.rules_of(path)).rules.values())
    start, count = (cast(int, body.get(name, default)) for name, default in (("skip", 0), ("top", 100)))
    chosen = rules[start : start + count]
    return (
        (200, {"rules": [{"rule-description": _described(rule.name, rule.given)} for rule in chosen]})
        if chosen
        else (204, None)
    )


def _filter(description: Body) -> dict[str, object]:
    if "sql-filter" in description:
        return {"sql": cast(Body, description["sql-filter"])["expression"]}
    if "correlation-filter" in description:
        given = cast(Body, description["correlation-filter"])
        return {"correlation": {str(name): value for name, value in given.items() if value is not None}}
    if "true-filter" in description:
        return {"true": True}
    if "false-filter" in description:
        return {"false": True}
    raise Refusal("amqp:invalid-field", "The rule has no filter.")


def _described(name: str, given: dict[str, object]) -> Described:
    if "sql" in given:
        chosen = Described(_SQL, [given["sql"], Int(20)])
    elif "correlation" in given:
        wanted = cast("dict[str, object]", given["correlation"])
        order = ("correlation-id", "message-id", "to", "reply-to", "label", "session-id", "reply-to-session-id",
                 "content-type")  # fmt: skip
        chosen = Described(_CORRELATION, [*(wanted.get(key) for key in order), wanted.get("properties") or {}])
    else:
        chosen = Described(_TRUE if "true" in given else _FALSE, [])
    return Described(_RULE, [chosen, Described(_EMPTY_ACTION, []), name, Timestamp(0)])


def _sessions(queue: Queue) -> Sessions:
    if queue.sessions is None:
        raise Refusal("amqp:not-allowed", f"'{queue.path}' has no sessions.")
    return queue.sessions


def _tokens(body: Body) -> list[UUID]:
    return cast("list[UUID]", body["lock-tokens"])


_SENDING: dict[str, Callable[[Queue | Topic, Body], Answer]] = {
    "schedule-message": _schedule, "cancel-scheduled-message": _cancel,
}  # fmt: skip
_RULES: dict[str, Callable[[Namespace, str, Body], Answer]] = {
    "add-rule": _add_rule, "remove-rule": _remove_rule, "enumerate-rules": _list_rules,
}  # fmt: skip
_RECEIVING: dict[str, Callable[[Queue, Body], Answer]] = {
    "renew-lock": _renew, "peek-message": _peek, "receive-by-sequence-number": _receive, "update-disposition": _update,
    "renew-session-lock": _renew_session, "get-session-state": _get_state, "set-session-state": _set_state,
}  # fmt: skip
#: What only the holder of a session may ask for.
_HOLDING = ("renew-session-lock", "get-session-state", "set-session-state")
