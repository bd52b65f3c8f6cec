"""Native errors in AMB's words: one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import ClientError as HttpError
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
from botocore import exceptions as native

__all__ = ["NATIVE", "refused", "translate"]

#: What the client library raises.
NATIVE = (native.BotoCoreError, native.ClientError, HttpError, OSError, TimeoutError)

#: By a part of the error's code. The first that fits counts.
_BY_CODE: tuple[tuple[str, type[AmbError], str], ...] = (
    ("NonExistentQueue", NotFound, "make the queue, or let AMB do it (auto_create=True)"),
    ("QueueDoesNotExist", NotFound, "make the queue, or let AMB do it (auto_create=True)"),
    ("NotFound", NotFound, "make it, or let AMB do it (auto_create=True)"),
    ("InvalidClientTokenId", AuthenticationError, "check the access key and the region"),
    ("UnrecognizedClient", AuthenticationError, "check the access key and the region"),
    ("SignatureDoesNotMatch", AuthenticationError, "check the secret access key"),
    ("InvalidSignature", AuthenticationError, "check the secret access key"),
    ("IncompleteSignature", AuthenticationError, "check the access key"),
    ("ExpiredToken", AuthenticationError, "get new temporary credentials"),
    ("InvalidAccessKeyId", AuthenticationError, "check the access key"),
    ("AuthFailure", AuthenticationError, "check the access key"),
    ("MissingAuthenticationToken", AuthenticationError, "give credentials"),
    ("AccessDenied", AccessDenied, "allow the action in the IAM policy"),
    ("AuthorizationError", AccessDenied, "allow the action in the IAM policy"),
    ("KmsDisabled", AccessDenied, "enable the queue's key"),
    ("Kms", AccessDenied, "allow the use of the queue's key"),
    ("ReceiptHandleIsInvalid", LeaseLost, "it was handed to somebody else"),
    ("MessageNotInflight", LeaseLost, "its visibility timeout has run out"),
    ("BatchRequestTooLong", MessageTooLarge, "send less"),
    ("QueueDeletedRecently", Unavailable, "AWS makes a queue of that name again after 60 s"),
    ("OverLimit", Unavailable, "too many messages in flight: settle some"),
    ("Throttl", Unavailable, "AWS asks for fewer requests"),
    ("InvalidParameter", ConfigurationError, "check the options"),
    ("InvalidAttribute", ConfigurationError, "check the options"),
    ("InvalidMessageContents", ConfigurationError, "AMB should have encoded it: please report it"),
    ("UnsupportedOperation", ConfigurationError, "check the options"),
)
_BY_TYPE: tuple[tuple[type[BaseException], type[AmbError], str], ...] = (
    (native.NoCredentialsError, AuthenticationError, "give aws_access_key_id and aws_secret_access_key, or a role"),
    (native.PartialCredentialsError, AuthenticationError, "give the access key and its secret"),
    (native.CredentialRetrievalError, AuthenticationError, "check where the credentials come from"),
    (native.NoRegionError, ConfigurationError, "give region_name"),
    (native.InvalidRegionError, ConfigurationError, "check region_name"),
    (native.EndpointConnectionError, Unavailable, "is the service reachable, the region and the endpoint right?"),
    (native.ConnectTimeoutError, Unavailable, "is the service reachable?"),
    (native.ProxyConnectionError, Unavailable, "check the proxy"),
    (native.SSLError, Unavailable, "check the certificate of the endpoint"),
    (native.ParamValidationError, ConfigurationError, "check the options"),
)
#: The request had not left, or cannot have done anything.
_NOT_SENT = (native.EndpointConnectionError, native.ConnectTimeoutError, native.ProxyConnectionError, native.SSLError)


def refused(error: BaseException, *codes: str) -> bool:
    """Whether AWS answered with one of these codes."""
    return isinstance(error, native.ClientError) and any(code in _code(error.response) for code in codes)


def translate(error: BaseException | Mapping[str, Any], doing: str, *, unknown: bool = False) -> AmbError:
    """The AMB error for a native one, or for a failed entry of a batch. `doing` says what was tried, and where.

    `unknown`: something was to be stored, so an answer that never came leaves the outcome open."""
    if isinstance(error, native.ClientError):
        return _answered(error.response.get("Error", {}), _code(error.response), doing, error)
    if isinstance(error, Mapping):
        return _answered(error, str(error.get("Code", "")), doing, None)
    text = " ".join(str(error).split()).rstrip(".") or "no answer in time"
    for matched, kind, advice in _BY_TYPE:
        if isinstance(error, matched):
            return _chain(kind(f"{doing}: {text}; {advice}"), error)
    if unknown and not isinstance(error, _NOT_SENT):
        return _chain(PublishUnknown(f"{doing}: the answer never came: {text}"), error)
    return _chain(Unavailable(f"{doing}: {text}"), error)


def _answered(said: Mapping[str, Any], code: str, doing: str, cause: BaseException | None) -> AmbError:
    text = " ".join(str(said.get("Message") or code).split()).rstrip(".")
    if "receipt handle" in text.lower():
        return _chain(LeaseLost(f"{doing}: {text}"), cause)
    if "must be shorter than" in text:
        return _chain(MessageTooLarge(f"{doing}: {text}"), cause)
    for part, kind, advice in _BY_CODE:
        if part in code:
            return _chain(kind(f"{doing}: {text}; {advice}"), cause)
    return _chain(Unavailable(f"{doing}: {code}: {text}"), cause)


def _code(response: Mapping[str, Any]) -> str:
    error = response.get("Error", {})
    return f"{error.get('Code', '')} {error.get('QueryErrorCode', '')}"


def _chain(error: AmbError, cause: BaseException | None) -> AmbError:
    error.__cause__ = cause
    return error
