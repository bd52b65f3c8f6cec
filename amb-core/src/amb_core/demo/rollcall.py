"""Who is there? Messages without a listener are gone, so whoever begins asks first."""

from __future__ import annotations

import anyio

from amb_core import Message, MessageBus

PATIENCE, PAUSE = 30.0, 0.1


def answer_as(bus: MessageBus, kind: str) -> None:
    """Answer roll calls with `kind`."""

    @bus.responder("agents.rollcall")
    async def here(call: Message) -> str:
        return kind


async def wait_for(bus: MessageBus, kinds: set[str]) -> None:
    """Return when an agent of every kind has answered. Raises: TimeoutError after half a minute."""
    present: set[str] = set()
    deadline = anyio.current_time() + PATIENCE
    while anyio.current_time() < deadline:
        replies = await bus.scatter("agents.rollcall", None, timeout=1, max_responses=len(kinds))
        present |= {reply.data for reply in replies}
        if kinds <= present:
            return
        await anyio.sleep(PAUSE)  # some kinds may have answered for others that are not there yet
    raise TimeoutError(f"no {' and no '.join(sorted(kinds - present))} came to the roll call within {PATIENCE:g} s")
