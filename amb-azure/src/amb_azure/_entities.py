"""What must exist in the namespace: the topic, and a subscription with its rules for each source."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from amb_core.broker import Source
from amb_core.errors import AmbError, NotFound
from azure.core.exceptions import ResourceExistsError
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.management import SqlRuleFilter

from ._client import Client
from ._errors import NATIVE, translate
from ._link import close, enter
from ._wire import rules, sessions_of

if TYPE_CHECKING:
    from .broker import AzureServiceBusBroker

__all__ = ["Entities"]

T = TypeVar("T")
#: What nobody receives from for so long is deleted: the least that the service takes.
_IDLE = timedelta(minutes=5)
_LONG = 120.0


class Entities:
    """Makes what is missing, if that is allowed."""

    def __init__(self, options: AzureServiceBusBroker, client: Client) -> None:
        self._options, self._client = options, client
        self._topic = options.topic_name

    async def make_topic(self) -> None:
        """Make the topic; harmless if it is there. Raises: AmbError."""
        window = self._options.duplicate_detection
        kwargs: dict[str, object] = {}
        if window:
            kwargs = {
                "requires_duplicate_detection": True,
                "duplicate_detection_history_time_window": timedelta(seconds=window),
            }
        admin = self._client.admin
        doing = f"make the Service Bus topic {self._topic!r}"
        await self._made(admin.create_topic(self._topic, **kwargs), doing)  # type: ignore[arg-type]

    async def make_elections(self, name: str, lock: float) -> None:
        """Make the queue of elections, with locks of `lock` seconds; harmless if it is there. Raises: AmbError."""
        made = self._client.admin.create_queue(name, requires_session=True, lock_duration=timedelta(seconds=lock))
        await self._made(made, f"make the Service Bus queue {name!r}")

    async def make_subscription(self, name: str, source: Source) -> None:
        """Make a source's subscription; harmless if it is there. Raises: AmbError.

        Every step is repeated by whoever comes next, as somebody else may be in the middle of them, or have died there.
        """
        doing, admin = f"make the subscription {name!r} for {source.pattern!r}", self._client.admin
        await self._made(
            admin.create_subscription(
                self._topic,
                name,
                lock_duration=timedelta(seconds=self._options.lock_duration),
                max_delivery_count=self._options.max_delivery_count,
                requires_session=sessions_of(source),
                auto_delete_on_idle=_IDLE if source.group is None else None,
                dead_lettering_on_filter_evaluation_exceptions=False,
            ),
            doing,
        )
        # A new subscription comes with a rule that lets everything through.
        with suppress(NotFound):
            await self._asked(admin.delete_rule(self._topic, name, "$Default"), doing)
        for rule, wanted in rules(name, source.pattern).items():
            await self._made(admin.create_rule(self._topic, name, rule, filter=wanted), doing)

    async def remove_subscription(self, name: str) -> None:
        """Delete a subscription. Raises: AmbError."""
        with suppress(NotFound):
            doing = f"delete the subscription {name!r}"
            await self._asked(self._client.admin.delete_subscription(self._topic, name), doing)

    def receiver(self, name: str, **kwargs: Any) -> ServiceBusReceiver:
        """A receiver to be opened."""
        return self._client.receiver(name, **kwargs)

    async def opened(self, receiver: ServiceBusReceiver, name: str, source: Source) -> ServiceBusReceiver:
        """An open receiver of a source's subscription. Raises: AmbError."""
        try:
            # A session takes as long as none is free; the service itself ends it after a minute.
            await enter(receiver, self._options.connect_timeout if receiver.session is None else _LONG)
        except BaseException as error:
            await close(receiver)
            if not isinstance(error, NATIVE):
                raise
            failed = translate(error, f"subscribe to {source.pattern!r}")
            if isinstance(failed, NotFound) and not self._options.auto_create:
                failed = self._missing(name, source)
            raise failed from error
        return receiver

    def _missing(self, name: str, source: Source) -> AmbError:
        """What to make by hand."""
        wanted = rules(name, source.pattern)["topic"]
        text = wanted.sql_expression if isinstance(wanted, SqlRuleFilter) else f"amb_topic = '{source.pattern}'"
        session = ", with sessions" if sessions_of(source) else ""
        return NotFound(
            f"subscribe to {source.pattern!r}: the Service Bus topic {self._topic!r} has no subscription {name!r}: "
            f"make it{session}, with the SQL filters {text!r} and \"amb_to = '{name}'\", or set auto_create"
        )

    async def _made(self, call: Awaitable[object], doing: str) -> None:
        try:
            await self._asked(call, doing)
        except AmbError as error:
            if not isinstance(error.__cause__, ResourceExistsError):
                raise

    async def _asked(self, call: Awaitable[T], doing: str) -> T:
        try:
            with anyio.fail_after(self._options.response_timeout):
                return await call
        except NATIVE as error:
            raise translate(error, doing) from error
