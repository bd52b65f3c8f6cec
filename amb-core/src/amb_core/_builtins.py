"""What AMB brings itself, registered through the hooks that everybody uses."""

from __future__ import annotations

from typing import Any

from .hookspecs import BrokerRegister, FilterRegister, RetryPolicyRegister, SerializerRegister, hookimpl
from .serializer import Serializer


@hookimpl
def amb_register_brokers(register: BrokerRegister) -> None:
    """The broker inside the process."""
    from .memory import InMemoryBroker

    register("memory", InMemoryBroker)


@hookimpl
def amb_register_serializers(register: SerializerRegister) -> None:
    """JSON, MessagePack, and, with the extras of their names, Protocol Buffers and Avro."""
    register("json", _json, content_types=("application/json", "text/json"))
    register(
        "msgpack", _msgpack, content_types=("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
    )
    register(
        "protobuf",
        _protobuf,
        content_types=("application/protobuf", "application/x-protobuf", "application/vnd.google.protobuf"),
    )
    register("avro", _avro, content_types=("application/avro", "avro/binary", "application/vnd.apache.avro+binary"))


def _json() -> Serializer:
    from .serializers.json import JsonSerializer

    return JsonSerializer()


def _msgpack() -> Serializer:
    from .serializers.msgpack import MsgPackSerializer

    return MsgPackSerializer()


def _protobuf() -> Serializer:
    from .serializers.protobuf import ProtobufSerializer

    return ProtobufSerializer()


def _avro() -> Serializer:
    from .serializers.avro import AvroSerializer

    return AvroSerializer()


@hookimpl
def amb_register_filters(register: FilterRegister) -> None:
    """The filter by headers and data."""
    from ._filters import MessageFilter

    register("match", MessageFilter)


@hookimpl
def amb_register_retry_policies(register: RetryPolicyRegister) -> None:
    """Growing pauses, equal pauses, no retries."""
    from ._retry import RetryPolicy

    def fixed(max_retries: int = 3, delay: float = 1.0, **options: Any) -> RetryPolicy:
        return RetryPolicy(
            max_retries=max_retries, initial_delay=delay, max_delay=delay, exponential_base=1.0, jitter=0.0, **options
        )

    register("exponential", RetryPolicy)
    register("fixed", fixed)
    register("none", lambda: RetryPolicy(max_retries=0))
