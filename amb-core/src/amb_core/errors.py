"""Every error AMB raises, in one tree, sorted by what the reader can do about it.

Each also derives from the built-in that a caller would expect (`ConnectionError`,
`TimeoutError`, `ValueError`, `PermissionError` …). Messages say what happened, to which name,
and what to do next. Secrets never appear in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "AccessDenied",
    "AlreadySettled",
    "AmbError",
    "AuthenticationError",
    "BackpressureError",
    "Blocked",
    "BrokerUnavailable",
    "BusClosed",
    "CircuitOpen",
    "ConfigurationError",
    "ConnectionLost",
    "DecodeError",
    "EncodeError",
    "IncompatibleSchema",
    "LeaseLost",
    "MessageTooLarge",
    "NoResponders",
    "NotFound",
    "PartialFailure",
    "PluginError",
    "PublishUnknown",
    "RemoteError",
    "RequestTimeout",
    "Unavailable",
    "UnsupportedError",
]


class AmbError(Exception):
    """Anything AMB raises on purpose."""


# --- Change the program or its configuration ---------------------------------------------------


class ConfigurationError(AmbError, ValueError):
    """An option, environment variable or URL has a value that cannot work."""


class PluginError(ConfigurationError):
    """A named broker, serializer, filter or retry policy could not be had: not installed, unknown,
    broken, or claimed by two distributions."""


class UnsupportedError(AmbError, NotImplementedError):
    """The broker does not declare the capability. Raised before any I/O."""


class EncodeError(AmbError, ValueError):
    """A payload cannot be serialized."""


class IncompatibleSchema(EncodeError):
    """The schema of a payload may not follow the schemas that its topic has had."""


class MessageTooLarge(AmbError, ValueError):
    """A message exceeds the broker's limit. Raised before the network where the limit is known."""


class BusClosed(AmbError, RuntimeError):
    """The bus was disconnected and cannot be used until it is connected again."""


class AlreadySettled(AmbError, RuntimeError):
    """A message was settled twice with different verdicts."""


class AuthenticationError(AmbError, ConnectionError):
    """The broker refused the credentials. Not retried at start."""


class AccessDenied(AmbError, PermissionError):
    """The credentials are good, but not for this topic, group or command."""


class NotFound(AmbError, LookupError):
    """The topic, queue or group does not exist and may not be created."""


# --- Wait, or look at the broker ----------------------------------------------------------------


class BrokerUnavailable(AmbError, ConnectionError):
    """The broker cannot be reached, or was lost."""


class Unavailable(BrokerUnavailable):
    """Transient: the operation did not happen and may be tried again on the same connection."""


class ConnectionLost(BrokerUnavailable):
    """The connection is finished; a new one is needed. The operation did not happen."""


class PublishUnknown(BrokerUnavailable):
    """The connection broke after a message was sent and before the broker answered: it may or may
    not have been accepted. Publishing again may deliver it twice (with the same id)."""


class BackpressureError(AmbError, TimeoutError):
    """A queue is full, or stayed full for the whole publish timeout. Nothing was published."""


class Blocked(Unavailable, BackpressureError):
    """The broker takes no messages for now, from anybody: it is low on memory or disk, say. Nothing was published;
    the core tries again until the publish timeout."""


class CircuitOpen(BrokerUnavailable):
    """The circuit breaker for this topic is open; publishing fails fast until it closes."""


# --- The other side ------------------------------------------------------------------------------


class RequestTimeout(AmbError, TimeoutError):
    """No reply, or too few, came in time. `responses` holds those that did."""

    def __init__(self, message: str, responses: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.responses = list(responses)


class NoResponders(AmbError, ConnectionError):
    """Nobody is subscribed to the requested topic."""


class RemoteError(AmbError):
    """The responder failed. `type` is the name of its exception, `text` its message."""

    def __init__(self, text: str, type: str = "Error", topic: str = "") -> None:
        super().__init__(f"the responder on {topic!r} failed: {type}: {text}" if topic else f"{type}: {text}")
        self.type = type
        self.text = text
        self.topic = topic


class DecodeError(AmbError, ValueError):
    """Bytes are not what their content type or the handler's annotation says."""


class LeaseLost(AmbError):
    """The broker took the delivery back (its lease ran out, or the group moved on)."""


class PartialFailure(AmbError):
    """Some items of a batch failed: `errors` maps their index to the error. The rest went through.
    `names`, if given, tells people which they are."""

    def __init__(self, errors: Mapping[int, Exception], names: Sequence[str] = ()) -> None:
        first = next(iter(errors.values()), None)
        which = f" ({', '.join(names)})" if names else ""
        super().__init__(f"{len(errors)} item(s) of the batch failed{which}; the first: {first}")
        self.errors = dict(errors)
