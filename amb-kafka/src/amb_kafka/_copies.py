"""What a group writes into its retry topic: later copies, copies of what is unfinished, and notes about those."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiokafka import ConsumerRecord, TopicPartition
from amb_core.broker import Incoming, Settlement

from ._clients import settled, watched
from ._errors import NATIVE, translate
from ._holds import HOLDS, TIERS
from ._live import position_of
from ._wire import later, noted

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

__all__ = ["Copies", "Place"]


class Place:
    """A token: a record, and the assignment under which it was read."""

    __slots__ = ("copy", "epoch", "held", "partition", "record")

    def __init__(self, partition: TopicPartition, record: ConsumerRecord[Any, Any], epoch: int) -> None:
        self.partition, self.record, self.epoch = partition, record, epoch
        #: The later copy on its way: whoever is told to settle again waits for that one.
        self.copy: asyncio.Future[Any] | None = None
        #: The id of the copy that is held while its handler runs, once the partition has moved.
        self.held = ""


class Copies:
    """Writes them. What failed is returned by index, as the error for whoever settles."""

    def __init__(self, producer: AIOKafkaProducer, retries: str, pattern: str) -> None:
        self._producer, self._retries, self._pattern = producer, retries, pattern

    async def hold(self, places: Mapping[int, tuple[Place, Incoming]]) -> dict[int, Exception]:
        """Copy what is unfinished. Each place says under which id."""
        futures: dict[int, asyncio.Future[Any]] = {}
        for index, (place, one) in places.items():
            headers = self._headers(place, one, 0.0, one.attempt, place.held)
            futures[index] = await self._store(place.record, headers, HOLDS)
        return self._told(await settled(futures))

    async def postpone(self, places: Mapping[int, tuple[Place, Incoming, Settlement]]) -> dict[int, Exception]:
        """Store what is to come later."""
        futures: dict[int, asyncio.Future[Any]] = {}
        try:
            for index, (place, one, how) in places.items():
                copy = place.copy
                if copy is None or (copy.done() and copy.exception() is not None):
                    headers = self._headers(place, one, time.time() + how.delay, how.attempt + 1)
                    copy = await self._store(place.record, headers, sum(how.delay > limit for limit in TIERS))
                futures[index] = place.copy = copy
        except NATIVE as error:
            return dict.fromkeys(places, translate(error, f"retry {self._pattern!r}"))
        # Whether a copy was stored is not known where one failed: one too many is better than none.
        return self._told(await settled(futures))

    async def note(self, places: Mapping[int, tuple[Place, str]]) -> dict[int, Exception]:
        """Tell who reads the held copies what came of them: ``done`` or ``back``."""
        futures: dict[int, asyncio.Future[Any]] = {}
        try:
            for index, (place, what) in places.items():
                futures[index] = await self._store(None, noted(place.held, what), HOLDS)
        except NATIVE as error:
            return dict.fromkeys(places, translate(error, f"settle {self._pattern!r}"))
        return self._told(await settled(futures))

    def _headers(self, place: Place, one: Incoming, due: float, attempt: int, held: str | None = None) -> Any:
        return later(place.record.headers, one.topic, due, attempt, one.position or position_of(place.record), held)

    async def _store(
        self, record: ConsumerRecord[Any, Any] | None, headers: Any, partition: int
    ) -> asyncio.Future[Any]:
        body, key = (record.value or b"", record.key) if record else (b"", None)
        send: Any = self._producer.send
        stored = await send(self._retries, body, key=key, headers=headers, partition=partition)
        return watched(self._producer, stored)

    def _told(self, failed: Mapping[int, BaseException]) -> dict[int, Exception]:
        return {index: translate(error, f"settle {self._pattern!r}") for index, error in failed.items()}
