"""The bus as tools for an agent that speaks the Model Context Protocol: publish, request, read.

    python -m docs.examples.mcp_server

It speaks on standard input and output; in the configuration of an MCP client that is:

    {"mcpServers": {"bus": {"command": "python", "args": ["-m", "docs.examples.mcp_server"],
                            "env": {"AMB_BROKER": "redis", "AMB_REDIS_URL": "redis://localhost:6379/0"}}}}

Needs amb-core and mcp. Without AMB_BROKER the bus is in this process, and nobody else is on it. AGENT_NAME says who
sends, and who reads: two agents with different names both get every message.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel

from amb_core import MessageBus, MessageStream
from amb_core.errors import AmbError

AGENT = os.environ.get("AGENT_NAME", "mcp-agent")
bus = MessageBus(sender=AGENT)


class Received(BaseModel):
    topic: str
    sender: str | None
    data: Any


class Inbox:
    """The topics that are being read, each from when it was first asked for until the server ends."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack, self._turn = stack, anyio.Lock()
        self._streams: dict[str, MessageStream] = {}

    async def read(self, topic: str, limit: int, wait: float) -> list[Received]:
        taken: list[Received] = []
        async with self._turn:
            if topic not in self._streams:
                self._streams[topic] = await self._stack.enter_async_context(bus.stream(topic, group=AGENT))
            with anyio.move_on_after(wait) as waiting:
                async for message in self._streams[topic]:
                    taken.append(Received(topic=message.topic, sender=message.sender, data=message.data))
                    if len(taken) >= limit:
                        break
                    waiting.deadline = min(waiting.deadline, anyio.current_time() + 0.5)
        return taken


@asynccontextmanager
async def lifespan(_: MCPServer[Inbox]) -> AsyncIterator[Inbox]:
    async with bus, AsyncExitStack() as stack:
        yield Inbox(stack)


server = MCPServer("amb", instructions="Talk to other agents over a message bus.", lifespan=lifespan)


@contextmanager
def explained() -> Iterator[None]:
    """The agent gets to know what went wrong, and what to do about it."""
    try:
        yield
    except (AmbError, ValueError) as error:
        raise ToolError(f"{type(error).__name__}: {error}") from error


@server.tool()
async def publish(topic: str, message: Any, headers: dict[str, str] | None = None) -> str:
    """Send a message to everybody who reads the topic (words with dots: "agents.planner.done"). Returns its id."""
    with explained():
        return await bus.publish(topic, message, headers=headers or {}, wait_for_confirmation=True)


@server.tool()
async def request(topic: str, message: Any, timeout: float = 30.0) -> Any:
    """Ask whoever answers on the topic, and wait for the answer, for so many seconds."""
    with explained():
        return (await bus.request(topic, message, timeout=timeout)).data


@server.tool()
async def read(topic: str, context: Context[Inbox], limit: int = 10, wait: float = 5.0) -> list[Received]:
    """The next messages of a topic, or of a pattern ("agents.*.done", "agents.#"), not read before; waits so many
    seconds for the first. The first call begins to listen."""
    with explained():
        return await context.request_context.lifespan_context.read(topic, limit, wait)


if __name__ == "__main__":
    server.run()
