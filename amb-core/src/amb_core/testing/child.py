"""A consumer process for the conformance kit: ``python -m amb_core.testing.child``.

The first line of standard input says what to do (from the kit itself: a pickle of the broker, the topic and
the options), each further line is a command; every line of standard output is an event, in JSON.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread

from .. import Message, MessageBus


def say(event: str, **facts: Any) -> None:
    """One line for the parent."""
    os.write(1, (json.dumps({"event": event, **facts}) + "\n").encode())


class Consumer:
    """What the handler does is `then`: ``return``, ``hang``, ``fail``, ``nack``, ``open`` (leave unsettled),
    ``wait`` (sleep for `seconds`), ``reply``."""

    def __init__(self, then: str, seconds: float, delay: float) -> None:
        self._then, self._seconds, self._delay = then, seconds, delay
        self.open: dict[Any, Message] = {}

    async def one(self, message: Message) -> Any:
        """The handler."""
        say("got", id=message.id, topic=message.topic, data=message.data, attempt=message.attempt)
        self.open[json.dumps(message.data)] = message
        return await self._act(message)

    async def many(self, messages: list[Message]) -> None:
        """The handler of a batch."""
        for message in messages:
            say("got", id=message.id, topic=message.topic, data=message.data, attempt=message.attempt)
        await self._act(messages[0])

    async def _act(self, message: Message) -> Any:
        if self._then == "hang":
            await anyio.sleep_forever()
        elif self._then == "fail":
            raise RuntimeError("told to fail")
        elif self._then == "nack":
            await message.nack(delay=self._delay)
            say("settled", data=message.data)
        elif self._then == "wait":
            await anyio.sleep(self._seconds)
            say("done", data=message.data)
        return message.data if self._then == "reply" else None


async def main() -> None:
    """Subscribe, then obey until told to stop or until the parent is gone."""
    line = await anyio.to_thread.run_sync(sys.stdin.readline)
    broker, topic, options = pickle.loads(base64.b64decode(line))
    consumer = Consumer(options.pop("then", "return"), options.pop("seconds", 0.0), options.pop("delay", 0.0))
    bus = MessageBus(broker, **options.pop("bus", {}))
    await bus.connect()
    handler: Callable[[Any], Awaitable[Any]] = consumer.many if options.get("ack_mode") == "batch" else consumer.one
    await bus.subscribe(topic, handler, **options)
    say("ready")
    while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        command = json.loads(line)
        if command["do"] == "stop":
            break
        await _obey(bus, consumer, command)
    await bus.disconnect()
    say("stopped")


async def _obey(bus: MessageBus, consumer: Consumer, command: dict[str, Any]) -> None:
    if command["do"] == "publish":
        await bus.publish(command["topic"], command["data"])
        say("published")
    elif command["do"] == "ack":
        try:
            await consumer.open[json.dumps(command["data"])].ack()
            say("settled", data=command["data"])
        except Exception as error:
            say("refused", data=command["data"], error=type(error).__name__)


if __name__ == "__main__":
    anyio.run(main)
