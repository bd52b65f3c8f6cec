"""Publishing for those whose word counts: what may have got lost with a connection is said again."""

from __future__ import annotations

from amb_core import Message, MessageBus, PartialFailure, PublishUnknown


async def tell(bus: MessageBus, *messages: Message) -> None:
    """Publish; and again, with the same ids, what nobody knows the broker to have. Raises: as `publish_batch`."""
    rest = list(messages)
    while rest:
        try:
            await bus.publish_batch(rest)
            return
        except PartialFailure as failure:
            for error in failure.errors.values():
                if not isinstance(error, PublishUnknown):
                    raise error from failure
            rest = [rest[index] for index in failure.errors]
