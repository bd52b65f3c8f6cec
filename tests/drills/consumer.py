"""A consumer for the drills: ``python -m tests.drills.consumer PLAN``, with a plan in JSON.

Its broker comes from ``AMB_BROKER`` and its options alone, as in a deployment. Waits to be told ``go``, then
subscribes and consumes until SIGTERM. Tells what happens in lines of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from amb_core import AckMode, DeadLetterQueue, Message, MessageBus


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do with messages, whose data is ``{"n": number, …}``."""

    topic: str
    group: str
    concurrency: int = 10
    #: Seconds that each takes.
    work: float = 0.0
    #: Tell when the broker knows that a message is done, not only that it came.
    told: bool = False
    #: Leave messages with this ``"hold"`` undone for ever.
    hold: int = -1
    #: Where dead letters go, if anywhere; messages with ``"poison"`` raise.
    dead: str | None = None
    retries: int = 0


def say(event: str, **facts: Any) -> None:
    """One line for the parent; `at` is the clock that all processes share."""
    os.write(1, (json.dumps({"event": event, "at": time.monotonic(), **facts}) + "\n").encode())


def handler(plan: Plan) -> Any:
    """The handler that `plan` describes."""

    async def handle(message: Message) -> None:
        data = message.data
        say("got", data=data["n"], topic=message.topic, attempt=message.attempt)
        if data.get("hold", -2) == plan.hold:
            await anyio.sleep_forever()
        if data.get("poison"):
            raise RuntimeError("poison")
        if plan.work:
            await anyio.sleep(plan.work)
        if plan.told:
            await message.ack()
            say("done", data=data["n"])

    return handle


async def main(plan: Plan) -> None:
    """Consume until SIGTERM."""
    queue = DeadLetterQueue(plan.dead, max_retries=plan.retries) if plan.dead else None
    bus = MessageBus(dead_letter_queue=queue)
    say("loaded")
    await anyio.to_thread.run_sync(sys.stdin.readline)
    await bus.connect()
    mode = AckMode.MANUAL if plan.told else AckMode.AUTO
    await bus.subscribe(
        plan.topic, handler(plan), group=plan.group, concurrency=plan.concurrency, ack_mode=mode, retry_delay=0.05
    )
    say("ready")
    await bus.run_forever()
    say("left", settle_errors=bus.stats.settle_errors, reconnects=bus.stats.reconnects)


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1], type=Plan))
