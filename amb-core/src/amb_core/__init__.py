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
    IncompatibleSchema,
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
    from .observability.tracing import get_tracer as get_tracer
    from .observability.tracing import initialize_tracing as initialize_tracing
    from .serializers.avro import AvroSerializer as AvroSerializer
    from .serializers.json import JsonSerializer as JsonSerializer
    from .serializers.msgpack import MsgPackSerializer as MsgPackSerializer
    from .serializers.protobuf import ProtobufSerializer as ProtobufSerializer

__version__ = "1.0.0"

_LAZY = {
    "AvroSerializer": "amb_core.serializers.avro",
    "InMemoryBroker": "amb_core.memory",
    "JsonSerializer": "amb_core.serializers.json",
    "MsgPackSerializer": "amb_core.serializers.msgpack",
    "ProtobufSerializer": "amb_core.serializers.protobuf",
    "get_tracer": "amb_core.observability.tracing",
    "initialize_tracing": "amb_core.observability.tracing",
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
    "AvroSerializer",
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
    "IncompatibleSchema",
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
    "ProtobufSerializer",
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
    "get_tracer",
    "initialize_tracing",
]
