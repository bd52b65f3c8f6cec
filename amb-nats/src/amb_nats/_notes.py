"""Deliveries that were no attempts. JetStream counts every delivery; what was given back unstarted, or came before its
time, must not count. So whoever gives back leaves a note, and whoever gets a message again looks for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amb_core.errors import AccessDenied, NoResponders

from ._lease import Lease
from ._link import Link, status
from ._stream import Stream
from ._wire import NANO

__all__ = ["Notes"]

#: Seconds that a note is kept: longer than a message is likely to wait for its next delivery.
_KEPT = 14 * 24 * 3600


class Notes:
    """A stream beside the messages' own that keeps one number per consumer and message."""

    def __init__(self, link: Link, stream: Stream) -> None:
        self._link, self._stream = link, stream
        self._name = f"{stream.name}-NOTES"

    def _subject(self, consumer: str, lease: Lease) -> str:
        return f"_amb.notes.{self._stream.name}.{consumer}.{lease.position}"

    async def write(self, consumer: str, leases: Sequence[Lease]) -> None:
        """Note that the last delivery of each was no attempt, before it is given back. Raises: AmbError."""
        for lease in leases:
            await self.read(consumer, lease)
        missing = await self._write(consumer, leases)
        if missing:
            await self._make()
            await self._write(consumer, missing)

    async def _write(self, consumer: str, leases: Sequence[Lease]) -> list[Lease]:
        """Returns those that no stream wanted."""
        doing, missing = "note a delivery that was no attempt", []
        asked = [(lease, *self._link.expect(self._subject(consumer, lease))) for lease in leases]
        try:
            for lease, box, _ in asked:
                spared = str(lease.spared + 1).encode()
                name = self._subject(consumer, lease)
                await self._link.call(doing, self._link.client.post(name, spared, box, more=True))
            await self._link.client.push()
            for lease, _, answer in asked:
                reply = await self._link.answer(answer, doing)
                if status(reply) is not None:
                    missing.append(lease)
        finally:
            for _, box, answer in asked:
                self._link.forget(box, answer)
        return missing

    async def read(self, consumer: str, lease: Lease) -> None:
        """Learn how many deliveries before this one were no attempts. Does nothing a second time."""
        if lease.known:
            return
        try:
            verb = f"DIRECT.GET.{self._name}.{self._subject(consumer, lease)}"
            reply = await self._link.exchange(f"{self._stream.api}.{verb}", b"", "look for a note")
            lease.spared = int(reply.data) if reply.data.isdigit() else 0
        except (AccessDenied, NoResponders):
            pass  # there is no such stream: nobody has ever left one
        lease.known = True

    async def _make(self) -> None:
        kept = (await self._stream.info())["config"]
        config: dict[str, Any] = {
            "name": self._name,
            "subjects": [f"_amb.notes.{self._stream.name}.>"],
            "description": "AMB: deliveries that were no attempts",
            "max_msgs_per_subject": 1,
            "max_age": _KEPT * NANO,
            "allow_direct": True,
            "storage": kept["storage"],
            "num_replicas": kept["num_replicas"],
        }
        await self._stream.ask(f"STREAM.CREATE.{self._name}", config, f"make the stream {self._name!r}")
