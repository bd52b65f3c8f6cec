"""Native errors in AMB's words: one table."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

from amb_core.errors import (
    AccessDenied,
    AmbError,
    AuthenticationError,
    BackpressureError,
    ConfigurationError,
    LeaseLost,
    MessageTooLarge,
    NotFound,
    PublishUnknown,
    Unavailable,
)
from azure.core import exceptions as http
from azure.servicebus import exceptions as native

__all__ = ["NATIVE", "translate"]

#: What the client library raises when it talks to the service. Some ends of a link come out as plain ValueError and
#: RuntimeError.
NATIVE = (http.AzureError, OSError, TimeoutError, ValueError, RuntimeError)

_DOWN = "is the namespace up and reachable?"
_CLAIMS = "give the key or the identity the claims Send and Listen, and Manage unless auto_create is off"
_KEY = "check the connection string, or who signs in"

#: What the service says wins over what the client library calls it.
_BY_TEXT: tuple[tuple[re.Pattern[str], type[AmbError], str], ...] = (
    (re.compile(r"claim", re.I), AccessDenied, _CLAIMS),
    (re.compile(r"InvalidSignature|CBS Token authentication failed|Status Code: 401|DefaultAzureCredential failed"),
     AuthenticationError, _KEY),
    (re.compile(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"), Unavailable,
     "check ssl_ca_certs, and that the certificate is valid for the host"),
)  # fmt: skip

_BY_TYPE: tuple[tuple[type[BaseException], type[AmbError], str], ...] = (
    (native.MessageLockLostError, LeaseLost, "it is delivered again"),
    (native.SessionLockLostError, LeaseLost, "it is delivered again"),
    (native.MessageNotFoundError, LeaseLost, "it is gone"),
    (native.MessageAlreadySettled, LeaseLost, "it was settled before"),
    (native.MessageSizeExceededError, MessageTooLarge, "publish a reference instead, or raise max_message_size"),
    (native.ServiceBusQuotaExceededError, BackpressureError, "it is full, or has too many connections"),
    (native.MessagingEntityNotFoundError, NotFound, "make it, or set auto_create"),
    (native.MessagingEntityDisabledError, AccessDenied, "enable it in the portal"),
    (native.ServiceBusAuthenticationError, AuthenticationError, _KEY),
    (native.ServiceBusAuthorizationError, AccessDenied, _CLAIMS),
    (http.ClientAuthenticationError, AuthenticationError, _KEY),
    (http.ResourceNotFoundError, NotFound, "make it, or set auto_create"),
    (ssl.SSLError, Unavailable, "check ssl_ca_certs, and that the certificate is valid for the host"),
    (ImportError, ConfigurationError, "pip install 'amb-azure[identity]'"),
)  # fmt: skip
_SECRETS = re.compile(r"(SharedAccessSignature |SharedAccessKey=|SharedAccessSignature=|\bsig=|Bearer )[^;&\s'\"]+")


def translate(error: BaseException, doing: str, *, unknown: bool = False) -> AmbError:
    """The AMB error for a native one. `doing` says what was tried, and where.

    `unknown`: the message had been written, so a broken link leaves the outcome open."""
    if isinstance(error, AmbError):
        return error
    text = _line(error)
    kind, advice = _kind(error)
    if unknown and kind is Unavailable:
        made: AmbError = PublishUnknown(f"{doing}: the link broke before the answer came: {text}")
    else:
        made = kind(f"{doing}: {text}; {advice}")
    made.__cause__ = error
    return made


def _kind(error: BaseException) -> tuple[type[AmbError], str]:
    chain = list(_chain(error))
    for words, kind, advice in _BY_TEXT:
        if any(words.search(str(each)) for each in chain) and not isinstance(error, native.MessageLockLostError):
            return kind, advice
    if isinstance(error, http.HttpResponseError) and error.status_code == 403:
        return AccessDenied, _CLAIMS
    for each in chain:
        for matched, kind, advice in _BY_TYPE:
            if isinstance(each, matched):
                return kind, advice
    return Unavailable, _DOWN


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return _SECRETS.sub(r"\1***", " ".join(text.split()))[:300].rstrip(".")
