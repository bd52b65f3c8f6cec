"""Native errors in AMB's words: one table."""

from __future__ import annotations

from amb_core.errors import (
    AccessDenied,
    AmbError,
    AuthenticationError,
    BackpressureError,
    ConfigurationError,
    MessageTooLarge,
    PublishUnknown,
    Unavailable,
)
from redis import exceptions as native

__all__ = ["NATIVE", "translate"]

#: What the client library raises when it talks to a server.
NATIVE = (native.RedisError, native.RedisClusterException, OSError, TimeoutError)

_BY_TYPE: tuple[tuple[type[Exception], type[AmbError], str], ...] = (
    (native.AuthenticationError, AuthenticationError, "check the user name and password"),
    (native.NoPermissionError, AccessDenied, "extend the user's ACL (keys ~prefix:*, channels &prefix:*)"),
    (native.OutOfMemoryError, BackpressureError, "the server is at maxmemory: free memory or let consumers catch up"),
    (native.ReadOnlyError, Unavailable, "this node is a replica; waiting for a master"),
    (native.ConnectionError, Unavailable, "is the server up and reachable?"),
    (native.TimeoutError, Unavailable, "the server did not answer in time"),
    (OSError, Unavailable, "is the server up and reachable?"),
)

_BY_CODE: tuple[tuple[str, type[AmbError], str], ...] = (
    ("NOAUTH", AuthenticationError, "give a password"),
    ("WRONGPASS", AuthenticationError, "check the user name and password"),
    ("NOPERM", AccessDenied, "extend the user's ACL (keys ~prefix:*, channels &prefix:*)"),
    ("OOM", BackpressureError, "the server is at maxmemory: free memory or let consumers catch up"),
    ("WRONGTYPE", ConfigurationError, "a key of that name holds something else: choose another prefix"),
    ("Protocol error: invalid bulk length", MessageTooLarge, "raise proto-max-bulk-len or send less"),
)


def translate(error: BaseException, doing: str, *, unknown: bool = False) -> AmbError:
    """The AMB error for a native one. `doing` says what was tried, and where.

    `unknown`: the command had been written, so a broken link leaves the outcome open."""
    if isinstance(error, AmbError):
        return error
    if isinstance(error, native.RedisClusterException) and error.__cause__ is not None:
        # "No reachable node": the cause says why.
        error = error.__cause__
    text = (str(error) or type(error).__name__).rstrip(".")
    # A script reports the errors of its commands with their codes, but not always as their types.
    for code, kind, advice in _BY_CODE:
        if code in text:
            return _chain(kind(f"{doing}: {text}; {advice}"), error)
    for matched, kind, advice in _BY_TYPE:
        if isinstance(error, matched):
            if unknown and kind is Unavailable:
                return _chain(PublishUnknown(f"{doing}: the link broke before the answer came: {text}"), error)
            return _chain(kind(f"{doing}: {text}; {advice}"), error)
    return _chain(Unavailable(f"{doing}: {text}"), error)


def _chain(error: AmbError, cause: BaseException) -> AmbError:
    error.__cause__ = cause
    return error
