"""Publishing: one sender for everything, kept open, and batches as large as the service takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import anyio
from amb_core.errors import AmbError, MessageTooLarge, Unavailable
from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch
from azure.servicebus.aio import ServiceBusSender
from azure.servicebus.exceptions import MessageNotFoundError, MessageSizeExceededError

from ._client import Client
from ._errors import NATIVE, translate
from ._link import close, enter

if TYPE_CHECKING:
    from .broker import AzureServiceBusBroker

__all__ = ["Publisher"]


class Publisher:
    """The sender of a connection. The client's is for one task at a time."""

    def __init__(self, options: AzureServiceBusBroker, client: Client) -> None:
        self._options, self._client = options, client
        self._turn = anyio.Lock()
        self._sender: ServiceBusSender | None = None

    async def open(self) -> None:
        """Open the sender; returns when the service has let us in. Raises: AmbError."""
        await self._opened()

    async def close(self) -> None:
        """Close the sender."""
        sender, self._sender = self._sender, None
        if sender is not None:
            await close(sender)

    async def send(self, messages: Mapping[int, ServiceBusMessage], doing: str) -> dict[int, AmbError]:
        """Send in order, those of one session together. Returns what failed."""
        sessions: dict[str | None, list[int]] = {}
        for index, message in messages.items():
            sessions.setdefault(message.session_id, []).append(index)
        errors: dict[int, AmbError] = {}
        async with self._turn:
            try:
                sender = await self._opened()
            except AmbError as error:
                return dict.fromkeys(messages, error)
            for indices in sessions.values():
                errors.update(await self._send_all(sender, indices, messages, doing))
        return errors

    async def _send_all(
        self, sender: ServiceBusSender, indices: Sequence[int], messages: Mapping[int, ServiceBusMessage], doing: str
    ) -> dict[int, AmbError]:
        errors: dict[int, AmbError] = {}
        rest = list(indices)
        while rest:
            if sender is not self._sender:
                lost = Unavailable(f"{doing}: the link broke with an earlier message; it is opened again")
                return errors | dict.fromkeys(rest, lost)
            try:
                with anyio.fail_after(self._options.response_timeout):
                    what, count = await self._next(sender, [messages[index] for index in rest], doing)
                    await sender.send_messages(what)
            except NATIVE as error:
                failed = translate(error, doing, unknown=True)
                count = 1 if isinstance(failed, MessageTooLarge) else len(rest)
                errors.update(dict.fromkeys(rest[:count], failed))
                if not isinstance(failed, MessageTooLarge):
                    await self.close()
            except AmbError as error:
                errors[rest[0]], count = error, 1
            except BaseException:
                # Its client may be in the middle of a frame.
                await self.close()
                raise
            rest = rest[count:]
        return errors

    async def _next(
        self, sender: ServiceBusSender, messages: Sequence[ServiceBusMessage], doing: str
    ) -> tuple[ServiceBusMessage | ServiceBusMessageBatch, int]:
        """As many of the messages as go in one piece."""
        if len(messages) == 1:
            return messages[0], 1
        batch = await sender.create_message_batch()
        for count, message in enumerate(messages):
            try:
                batch.add_message(message)
            except MessageSizeExceededError:
                return (batch, count) if count else (message, 1)
        return batch, len(messages)

    async def _opened(self) -> ServiceBusSender:
        if self._sender is None:
            sender = self._client.sender()
            doing = f"open the Service Bus topic {self._options.topic_name!r}"
            try:
                await enter(sender, self._options.connect_timeout)
            except NATIVE as error:
                await close(sender)
                raise translate(error, doing) from error
            self._sender = sender
        return self._sender

    async def pulse(self) -> None:
        """Ask the service something cheap. Raises: AmbError."""
        async with self._turn:
            sender = await self._opened()
            try:
                with anyio.fail_after(self._options.response_timeout):
                    # There is no such message, and to hear so proves that the link lives.
                    await sender.cancel_scheduled_messages(0)
            except MessageNotFoundError:
                return
            except NATIVE as error:
                await self.close()
                raise translate(error, "ask the service for its health") from error
