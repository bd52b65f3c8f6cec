"""AMB's values as Service Bus messages, names and filters. Pure functions; the format is described for other
languages in ``docs/brokers/azure.md``."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from zlib import crc32

import msgspec
from amb_core.broker import Incoming, Outgoing, Source
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.amqp import AmqpMessageBodyType
from azure.servicebus.management import CorrelationRuleFilter, SqlRuleFilter

__all__ = ["clone", "from_native", "rules", "session_of", "sessions_of", "subscription", "to_native"]

#: Properties beside the headers: the topic, the ordering key, and, on the later copy of a delivery, the one
#: subscription it is for, its topic (so that it matches no other's filter) and the attempts made before; and where its
#: trace goes on, as Azure's own tracing overwrites the header with a trace of its own.
TOPIC, KEY, TO, AGAIN, ATTEMPTS = "amb_topic", "amb_key", "amb_to", "amb_again", "amb_attempts"
TRACE, _HEADER = "amb_trace", "traceparent"
_OURS = (TOPIC, KEY, TO, AGAIN, ATTEMPTS, TRACE)
_PRIVATE, _USERS = "amb_", "amb_user_"
#: Longest ids, and the longest filter.
_ID, _NAME, _FILTER = 128, 50, 1024
_json = msgspec.json.encode


def subscription(source: Source) -> str:
    """The name of a source's subscription: readable, and told apart by a digest, as names ignore case."""
    if source.group is None:
        return f"amb-live-{_digest(source.id, source.pattern)}"
    readable = re.sub(r"[^A-Za-z0-9_-]", "-", source.group)[:20].strip("-") or "group"
    kind = "ordered" if source.ordered_by else "group"
    return f"{readable}-{_digest(kind, source.group, source.pattern)}"


def sessions_of(source: Source) -> bool:
    """Whether the members of a group must take turns, key by key; who is alone has the order anyway."""
    return source.ordered_by is not None and source.group is not None


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=14).hexdigest()


def rules(name: str, pattern: str) -> dict[str, CorrelationRuleFilter | SqlRuleFilter]:
    """The rules of the subscription `name`: what the pattern matches, and more; and copies that are for it alone."""
    again = CorrelationRuleFilter(properties={TO: name})
    return {"topic": _filter(pattern), "again": again}


def _filter(pattern: str) -> CorrelationRuleFilter | SqlRuleFilter:
    words = pattern.split(".")
    if not {"*", "#"} & set(words):
        return CorrelationRuleFilter(properties={TOPIC: pattern})
    # Without the dots around it, as `#` is also no word at all.
    like = re.sub(r"\.?\0\.?", "%", ".".join({"*": "%", "#": "\0"}.get(word, _escape(word)) for word in words))
    private = "" if words[0] not in ("*", "#") else f" AND {TOPIC} NOT LIKE '!_amb.%' ESCAPE '!'"
    text = f"{TOPIC} LIKE '{like}' ESCAPE '!'{private}"
    if len(text) > _FILTER:
        text = f"{TOPIC} IS NOT NULL"
    return SqlRuleFilter(text)


def _escape(word: str) -> str:
    return re.sub(r"([!%_])", r"!\1", word).replace("'", "''")


def session_of(key: str | None, sessions: int, spread: int) -> str:
    """The session of a message: equal keys share one; without a key, the one that `spread` says."""
    return str((spread if key is None else crc32(key.encode())) % sessions)


def to_native(message: Outgoing, session: str, dedup: bool) -> ServiceBusMessage:
    """The message for the service."""
    properties: dict[str | bytes, object] = {_outside(name): value for name, value in message.headers.items()}
    properties[TOPIC] = message.topic
    if message.key is not None:
        properties[KEY] = message.key
    if _HEADER in message.headers:
        properties[TRACE] = message.headers[_HEADER]
    made = _message(message.body, properties, _id(message, dedup), session, message.headers.get("content-type"))
    now = time.time()
    if message.not_before is not None and message.not_before > now:
        made.scheduled_enqueue_time_utc = _moment(message.not_before)
        now = message.not_before
    if message.expires is not None:
        # The client counts in whole seconds; the core drops what is late to the millisecond.
        made.time_to_live = timedelta(seconds=max(1, math.ceil(message.expires - now)))
    return made


def _outside(name: str) -> str:
    """A user's header may be called like one of our properties."""
    return f"{_USERS}{name}" if name.startswith(_PRIVATE) else name


def _message(
    body: bytes, properties: Mapping[str | bytes, object], id: str, session: str | None, kind: str | None
) -> ServiceBusMessage:
    return ServiceBusMessage(
        body, application_properties=dict(properties), message_id=id, session_id=session,  # type: ignore[arg-type]
        content_type=kind,
    )  # fmt: skip


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(math.ceil(seconds * 1000) / 1000, UTC)


def _id(message: Outgoing, dedup: bool) -> str:
    """What the service knows a second publish by. Dead letters, and what is put back from them, have the id of the
    original and are other messages."""
    id = message.headers.get("amb-id") or secrets.token_hex(12)
    if "amb-dead-topic" in message.headers or "amb-for" in message.headers:
        return _digest(id, secrets.token_hex(8))
    return _digest(id, message.topic) if dedup or len(id) > _ID else id


def clone(message: ServiceBusReceivedMessage, name: str, attempt: int, delay: float) -> ServiceBusMessage:
    """The later copy of a delivery, for the subscription `name` alone, for the attempt after `attempt`."""
    raw = {_text(key): value for key, value in (message.application_properties or {}).items()}
    topic = raw.pop(TOPIC, None) or raw.pop(AGAIN, None) or ""
    raw |= {AGAIN: _text(topic), TO: name, ATTEMPTS: attempt}
    properties: dict[str | bytes, object] = {
        key: _text(value) if isinstance(value, bytes) and key in raw else value for key, value in raw.items()
    }
    id = _digest(message.message_id or secrets.token_hex(12), name, str(attempt))
    made = _message(_body(message), properties, id, message.session_id, message.content_type)
    made.correlation_id, made.subject, made.reply_to = message.correlation_id, message.subject, message.reply_to
    due = time.time() + delay
    made.scheduled_enqueue_time_utc = _moment(due)
    expires = message.expires_at_utc
    if message.time_to_live is not None and expires is not None and expires.timestamp() < due + 10 * 365 * 86400:
        made.time_to_live = timedelta(seconds=max(1, math.ceil(expires.timestamp() - due)))
    return made


def from_native(message: ServiceBusReceivedMessage, token: object) -> Incoming:
    """A delivery in AMB's terms. A foreign producer's needs `amb_topic` and nothing else."""
    headers = {_text(name): _text(value) for name, value in (message.application_properties or {}).items()}
    ours = {name: headers.pop(name) for name in _OURS if name in headers}
    for name in [name for name in headers if name.startswith(_USERS)]:
        headers[name.removeprefix(_USERS)] = headers.pop(name)
    if TRACE in ours:
        headers[_HEADER] = ours[TRACE]
    if message.content_type is not None:
        headers.setdefault("content-type", message.content_type)
    attempts = ours.get(ATTEMPTS, "0")
    return Incoming(
        ours.get(AGAIN) or ours.get(TOPIC) or "",
        _body(message),
        headers,
        token,
        ours.get(KEY) or (message.session_id if "amb-id" not in headers else None),
        (int(attempts) if attempts.isdecimal() else 0) + (message.delivery_count or 0) + 1,
        str(message.sequence_number),
        message,
    )


def _body(message: ServiceBusReceivedMessage) -> bytes:
    """What is in the message; values that are no bytes are put as JSON."""
    if message.body_type is AmqpMessageBodyType.DATA:
        parts = message.body
        return parts if isinstance(parts, bytes) else b"".join(parts)
    value = message.body if message.body_type is AmqpMessageBodyType.VALUE else list(message.body)
    if isinstance(value, str | bytes):
        return value.encode() if isinstance(value, str) else value
    return _json(value, enc_hook=str)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="replace")
    return value.isoformat() if isinstance(value, datetime) else str(value)
