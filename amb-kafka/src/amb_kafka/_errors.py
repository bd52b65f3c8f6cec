"""Native errors in AMB's words: one table."""

from __future__ import annotations

from aiokafka import errors as native
from amb_core.errors import (
    AccessDenied,
    AmbError,
    AuthenticationError,
    ConfigurationError,
    LeaseLost,
    MessageTooLarge,
    NotFound,
    PublishUnknown,
    Unavailable,
)

__all__ = ["NATIVE", "translate"]

#: What the client library raises when it talks to a server.
NATIVE = (native.KafkaError, OSError, TimeoutError, AssertionError)

_REACHABLE = "are the servers up and reachable?"
_TABLE: tuple[tuple[tuple[type[Exception], ...], type[AmbError], str], ...] = (
    (
        (native.SaslAuthenticationFailed, native.AuthenticationFailedError),
        AuthenticationError,
        "check sasl_username and sasl_password",
    ),
    (
        (native.UnsupportedSaslMechanismError, native.AuthenticationMethodNotSupported, native.IllegalSaslStateError),
        AuthenticationError,
        "the server wants another sasl_mechanism",
    ),
    ((native.TopicAuthorizationFailedError,), AccessDenied, "grant the user Read, Write, Describe and Create on it"),
    ((native.GroupAuthorizationFailedError,), AccessDenied, "grant the user Read on the group"),
    ((native.ClusterAuthorizationFailedError,), AccessDenied, "grant the user IdempotentWrite and Create"),
    ((native.MessageSizeTooLargeError, native.RecordListTooLargeError), MessageTooLarge, "send less, or raise limits"),
    ((native.UnknownTopicOrPartitionError,), NotFound, "create the topic, or allow create_topics"),
    ((native.InvalidTopicError,), ConfigurationError, "give it another name with topics={...}"),
    (
        (native.InvalidSessionTimeoutError,),
        ConfigurationError,
        "session_timeout_ms must be within the server's group.min.session.timeout.ms and group.max.session.timeout.ms",
    ),
    ((native.InvalidReplicationFactorError,), ConfigurationError, "set replication_factor to the number of servers"),
    (
        (native.PolicyViolationError, native.InvalidConfigurationError),
        ConfigurationError,
        "the server's policy says no",
    ),
    ((native.UnsupportedVersionError, native.IncompatibleBrokerVersion), ConfigurationError, "use Kafka 3.0 or newer"),
    ((native.CommitFailedError, native.UnknownMemberIdError, native.IllegalGenerationError), LeaseLost, "it moved on"),
    ((native.NotEnoughReplicasError, native.NotEnoughReplicasAfterAppendError), Unavailable, "too few replicas are up"),
    ((native.KafkaError, OSError, TimeoutError), Unavailable, _REACHABLE),
)


def translate(error: BaseException, doing: str, *, unknown: bool = False) -> AmbError:
    """The AMB error for a native one. `doing` says what was tried, and where.

    `unknown`: the request had been written, so a broken link leaves the outcome open."""
    if isinstance(error, AmbError):
        return error
    text = (str(error) or type(error).__name__).rstrip(".")
    for kinds, kind, advice in _TABLE:
        if isinstance(error, kinds):
            if unknown and kind is Unavailable and _open_ended(error):
                return _chain(PublishUnknown(f"{doing}: no answer came: {text}"), error)
            return _chain(kind(f"{doing}: {text}; {advice}"), error)
    return _chain(Unavailable(f"{doing}: {text}"), error)


def _open_ended(error: BaseException) -> bool:
    return not isinstance(error, (native.NotEnoughReplicasError, native.OutOfOrderSequenceNumber))


def _chain(error: AmbError, cause: BaseException) -> AmbError:
    error.__cause__ = cause
    return error
