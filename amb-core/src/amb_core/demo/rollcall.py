"""Who is there? Messages without a listener are gone, so whoever begins asks first."""

from __future__ import annotations

from amb_core import Message, MessageBus

PATIENCE = 30


def answer_as(bus: MessageBus, kind: str) -> None:
    """Answer roll calls with `kind`."""

    @bus.responder("agents.rollcall")
    async def here(call: Message) -> str:
        return kind


async def wait_for(bus: MessageBus, kinds: set[str]) -> None:
    """Return when an agent of every kind has answered. Raises: TimeoutError after half a minute."""
    present: set[str] = set()
    for _ in range(PATIENCE):
        replies = await bus.scatter("agents.rollcall", None, timeout=1, max_responses=len(kinds))
        present |= {reply.data for reply in replies}
        if kinds <= present:
            return
    raise TimeoutError(f"no {' and no '.join(sorted(kinds - present))} came to the roll call within {PATIENCE} s")
