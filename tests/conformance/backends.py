"""Every first-party backend, as the rigs that the conformance kit runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import msgspec
from amb_core import InMemoryBroker
from amb_core.testing import Rig, rig_for

from . import rig_azure, rig_kafka, rig_nats, rig_rabbitmq, rig_redis, rig_sqs

__all__ = ["BACKENDS", "memory"]

#: Seconds. Long enough that a busy machine renews leases in time, short enough to watch them run out.
LEASE = 1.5


@contextmanager
def memory() -> Iterator[Rig]:
    """The memory broker, with leases that run out while somebody watches."""
    rig = rig_for(InMemoryBroker(lease=LEASE))
    yield msgspec.structs.replace(rig, name="memory", complete=True)


#: Starts what the backend needs, yields its rig, stops it again.
BACKENDS: Mapping[str, Callable[[], AbstractContextManager[Rig]]] = {
    "memory": memory,
    "azure": rig_azure.servicebus,
    "kafka": rig_kafka.kafka,
    "nats": rig_nats.core,
    "nats-jetstream": rig_nats.jetstream,
    "rabbitmq": rig_rabbitmq.rabbitmq,
    "redis": rig_redis.streams,
    "redis-pubsub": rig_redis.pubsub,
    "redis-cluster": rig_redis.cluster,
    "sqs": rig_sqs.sqs,
}
