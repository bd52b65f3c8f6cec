"""AMB, the Agent Message Bus: one API for publish, subscribe, ask and answer over many brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._breaker import CircuitBreaker
from ._bus import AgentMessageBus, Health, MessageBus
from ._deadletter import DeadLetter
from ._filters import MessageFilter
from ._lifecycle import Stats
from ._message import AckMode, DeadInfo, Message, MessagePriority, Priority, Request, Timestamp
from ._requests import Response
from ._retry import DeadLetterQueue, RetryPolicy
from ._streams import MessageStream
from ._subscription import Subscription, SubscriptionHealth
from .broker import Capabilities
from .errors import (
    AccessDenied,
    AlreadySettled,
    AmbError,
    AuthenticationError,
    BackpressureError,
    BrokerUnavailable,
    BusClosed,
    CircuitOpen,
    ConfigurationError,
    DecodeError,
    EncodeError,
    LeaseLost,
    MessageTooLarge,
    NoResponders,
    NotFound,
    PartialFailure,
    PluginError,
    PublishUnknown,
    RemoteError,
    RequestTimeout,
    UnsupportedError,
)

if TYPE_CHECKING:
    from .memory import InMemoryBroker as InMemoryBroker
    from .serializers.json import JsonSerializer as JsonSerializer
    from .serializers.msgpack import MsgPackSerializer as MsgPackSerializer

__version__ = "1.0.0"

_LAZY = {
    "InMemoryBroker": "amb_core.memory",
    "JsonSerializer": "amb_core.serializers.json",
    "MsgPackSerializer": "amb_core.serializers.msgpack",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name.endswith("Broker"):
        return getattr(import_module("amb_core.adapters"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AccessDenied",
    "AckMode",
    "AgentMessageBus",
    "AlreadySettled",
    "AmbError",
    "AuthenticationError",
    "BackpressureError",
    "BrokerUnavailable",
    "BusClosed",
    "Capabilities",
    "CircuitBreaker",
    "CircuitOpen",
    "ConfigurationError",
    "DeadInfo",
    "DeadLetter",
    "DeadLetterQueue",
    "DecodeError",
    "EncodeError",
    "Health",
    "InMemoryBroker",
    "JsonSerializer",
    "LeaseLost",
    "Message",
    "MessageBus",
    "MessageFilter",
    "MessagePriority",
    "MessageStream",
    "MessageTooLarge",
    "MsgPackSerializer",
    "NoResponders",
    "NotFound",
    "PartialFailure",
    "PluginError",
    "Priority",
    "PublishUnknown",
    "RemoteError",
    "Request",
    "RequestTimeout",
    "Response",
    "RetryPolicy",
    "Stats",
    "Subscription",
    "SubscriptionHealth",
    "Timestamp",
    "UnsupportedError",
]
