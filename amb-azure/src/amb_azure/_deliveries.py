"""What one link has handed over and what has become of it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from amb_core.broker import Incoming, Settlement, Token
from amb_core.errors import AmbError, LeaseLost, Unavailable
from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusReceiver

from ._errors import NATIVE, translate
from ._link import Link, together
from ._wire import from_native

__all__ = ["Deliveries"]

_serial = itertools.count()
_Do = Callable[[ServiceBusReceiver, int, ServiceBusReceivedMessage], Awaitable[object]]


class Deliveries:
    """The unsettled deliveries of a link. Their locks outlive it: another link of the subscription settles them too."""

    def __init__(self, doing: str, patience: float) -> None:
        self._doing, self._patience = doing, patience
        self.number = next(_serial)
        self._held: dict[Token, ServiceBusReceivedMessage] = {}

    def __len__(self) -> int:
        return len(self._held)

    def strange(self, token: Token) -> bool:
        """Whether the delivery came through something else, so that it is not ours any more."""
        return not isinstance(token, tuple) or token[0] != self.number

    def hold(self, message: ServiceBusReceivedMessage) -> Incoming:
        """The delivery, held until it is settled."""
        token = (self.number, message.lock_token)
        if message.lock_token is None:  # gone from the service already
            return from_native(message, (self.number, next(_serial)))
        self._held[token] = message
        return from_native(message, token)

    def find(self, token: Token) -> ServiceBusReceivedMessage | None:
        """A delivery that is not settled yet."""
        return self._held.get(token)

    async def settle(
        self, link: Link, outcomes: Mapping[int, Settlement], stored: frozenset[int] = frozenset()
    ) -> dict[int, AmbError]:
        """Carry out the outcomes; `stored` are retries of which there is a later copy. Returns what failed."""

        async def one(receiver: ServiceBusReceiver, i: int, message: ServiceBusReceivedMessage) -> None:
            verdict = outcomes[i].verdict
            if verdict == "release" or (verdict == "retry" and i not in stored):
                await receiver.abandon_message(message)
            else:
                await receiver.complete_message(message)
            self._held.pop(outcomes[i].token, None)

        return await self._each(link, {i: outcome.token for i, outcome in outcomes.items()}, one)

    async def renew(self, link: Link, tokens: Mapping[int, Token]) -> dict[int, AmbError]:
        """Restart the leases. Returns what failed."""
        if link.native.session is None:
            return await self._each(link, tokens, lambda receiver, _, message: receiver.renew_message_lock(message))
        error = await self.renew_session(link)
        return {} if error is None else dict.fromkeys(tokens, error)

    async def renew_session(self, link: Link) -> AmbError | None:
        """Restart the lease of a session, and so of all that came with it. Returns what failed."""
        try:
            async with link.turn() as receiver:
                (result,) = await together([receiver.session.renew_lock()], self._patience)
                if isinstance(result, BaseException):
                    raise result
        except NATIVE as error:
            failed = translate(error, self._doing)
            link.broken = link.broken or not isinstance(failed, LeaseLost)
            return failed
        return None

    async def give_back(self, link: Link) -> None:
        """Let others have what was not settled, as far as the link can still say so."""
        outcomes = [Settlement(token, "release") for token in self._held]
        await self.settle(link, dict(enumerate(outcomes)))

    async def _each(self, link: Link, tokens: Mapping[int, Token], do: _Do) -> dict[int, AmbError]:
        """Do it for each that is held; those that are not were settled before."""
        errors: dict[int, AmbError] = {}
        messages = {i: self._held[token] for i, token in tokens.items() if token in self._held}
        waiting = set(messages)

        async def one(receiver: ServiceBusReceiver, i: int) -> None:
            try:
                await do(receiver, i, messages[i])
            except NATIVE as error:
                errors[i] = translate(error, self._doing)
                if isinstance(errors[i], LeaseLost):
                    self._held.pop(tokens[i], None)
            waiting.discard(i)

        late = Unavailable(f"{self._doing}: the service did not answer in time")
        try:
            async with link.turn() as receiver:
                with suppress(TimeoutError):
                    await together((one(receiver, i) for i in messages), self._patience)
        except OSError as error:  # closed while they waited for their turn
            late = Unavailable(f"{self._doing}: {error}")
        if waiting:
            errors.update(dict.fromkeys(waiting, late))
        link.broken = link.broken or any(not isinstance(error, LeaseLost) for error in errors.values())
        return errors
