"""What a case asks of a broker's capabilities, and how a bus must refuse where they are missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from .._bus import MessageBus
from ..broker import Broker, Capabilities
from ..errors import UnsupportedError
from .tamper import NoDial

Probe = Callable[[MessageBus, str], Awaitable[Any]]


async def _ignore(message: Any) -> None:
    """A handler for subscriptions that must not come about."""


async def _first(bus: MessageBus, topic: str) -> None:
    async for _ in bus.replay(topic):
        return


class Gate(msgspec.Struct, frozen=True):
    """A condition, why it matters, and, where a bus can be asked for the ability, how."""

    holds: Callable[[Capabilities], bool]
    reason: str
    #: Must raise UnsupportedError without connecting. None: there is nothing to ask for.
    probe: Probe | None = None


GATES: dict[str, Gate] = {
    "durable": Gate(lambda c: c.durable, "nothing survives the broker (durable is not declared)"),
    "confirm": Gate(
        lambda c: c.confirm != "none",
        "publishes are not confirmed",
        lambda bus, topic: bus.publish(topic, 1, wait_for_confirmation=True),
    ),
    "groups": Gate(lambda c: c.groups, "no groups", lambda bus, topic: bus.subscribe(topic, _ignore, group="workers")),
    "durable_groups": Gate(lambda c: c.groups and c.durable_groups, "groups keep nothing while they have no member"),
    "redelivery": Gate(
        lambda c: c.groups and c.redelivery == "broker", "redelivery is the process's (redelivery is not 'broker')"
    ),
    "lease": Gate(lambda c: c.groups and c.redelivery == "broker" and c.lease is not None, "deliveries have no lease"),
    "extend_lease": Gate(lambda c: c.lease is not None and c.extend_lease, "leases cannot be extended"),
    "delivery_count": Gate(lambda c: c.groups and c.delivery_count != "none", "nobody counts attempts"),
    "delay": Gate(lambda c: c.delay != "none", "no delays", lambda bus, topic: bus.publish(topic, 1, delay=1.0)),
    "retry_delay": Gate(
        lambda c: c.delay != "none" or c.redelivery == "process",
        "no delays",
        lambda bus, topic: bus.publish(topic, 1, delay=1.0),
    ),
    "order": Gate(
        lambda c: c.order != "none", "no order", lambda bus, topic: bus.subscribe(topic, _ignore, ordered_by="key")
    ),
    "replay": Gate(lambda c: c.replay != "none", "nothing is kept to be replayed", _first),
    "elections": Gate(
        lambda c: c.elections, "nobody is elected (elections is not declared)", lambda bus, topic: bus.elections()
    ),
    "priority": Gate(lambda c: c.priority != "prefetch", "only what is fetched is reordered (priority is 'prefetch')"),
    "return_unstarted": Gate(
        lambda c: c.groups and c.return_unstarted, "deliveries cannot be given back without an attempt"
    ),
    "volatile": Gate(lambda c: not c.durable, "what is accepted survives (durable is declared)"),
}


async def refuses(broker: Broker, gate: Gate, topic: str) -> None:
    """Check that the bus refuses by name, before any I/O. Raises: AssertionError if it does not."""
    if gate.probe is None:
        return
    bus = MessageBus(NoDial(broker))
    try:
        await gate.probe(bus, topic)
    except UnsupportedError as error:
        assert str(error), "the refusal says nothing"
    else:
        raise AssertionError(f"not declared ({gate.reason}), and yet not refused with UnsupportedError")
    finally:
        await bus.disconnect()
