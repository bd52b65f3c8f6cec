"""The MCP server, asked by the SDK's own client: in memory, and as a process on standard input and output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus
from amb_redis import RedisBroker
from mcp import Client, StdioServerParameters

from tests.cli._amb import environment
from tests.docs._page import ROOT

pytestmark = pytest.mark.anyio
Load = Callable[[str], ModuleType]


def process(env: dict[str, str]) -> StdioServerParameters:
    """As an MCP client has it in its configuration."""
    arguments = ["-W", "error", "-m", "docs.examples.mcp_server"]
    return StdioServerParameters(command=sys.executable, args=arguments, env=environment(env), cwd=ROOT)


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """What a tool gives back; as text, if it complains, or if its answer may be anything."""
    result = await client.call_tool(tool, arguments)
    if result.structured_content is None:
        return " ".join(getattr(part, "text", "") for part in result.content)
    return result.structured_content["result"]


@pytest.fixture(params=["memory", "process"])
def server(request: pytest.FixtureRequest, example: Load) -> Any:
    return example("mcp_server").server if request.param == "memory" else process({})


async def test_an_agent_finds_the_tools_and_what_they_are_for(server: Any) -> None:
    async with Client(server) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"publish", "request", "read"}
    assert all(tool.description for tool in tools.values())
    assert set(tools["read"].input_schema["properties"]) == {"topic", "limit", "wait"}
    assert tools["publish"].input_schema["required"] == ["topic", "message"]


async def test_what_is_published_is_read_once_and_in_order(server: Any) -> None:
    async with Client(server) as client:
        assert await call(client, "read", topic="notes.#", wait=0.1) == []
        for number in range(3):
            assert await call(client, "publish", topic=f"notes.n{number}", message={"n": number})
        first = await call(client, "read", topic="notes.#", limit=2)
        rest = await call(client, "read", topic="notes.#", limit=2)
        assert await call(client, "read", topic="notes.#", wait=0.1) == []
    assert [got["data"]["n"] for got in first] == [0, 1] and [got["data"]["n"] for got in rest] == [2]
    assert first[0]["topic"] == "notes.n0" and first[0]["sender"] == "mcp-agent"


async def test_what_goes_wrong_is_told_to_the_agent(server: Any) -> None:
    async with Client(server) as client:
        assert "publish to a concrete topic" in await call(client, "publish", topic="notes.*", message=1)
        assert "NoResponders: nobody is subscribed to 'nobody'" in await call(
            client, "request", topic="nobody", message=1
        )
        assert "ValueError" in await call(client, "read", topic="not..a.topic")
        assert await call(client, "publish", topic="notes", message="still there")


async def test_over_redis_two_agents_and_a_program_that_is_none_work_together(redis: dict[str, str]) -> None:
    bus = MessageBus(RedisBroker(redis["AMB_REDIS_URL"], prefix=redis["AMB_REDIS_PREFIX"]))
    seen: list[Message] = []

    @bus.responder("sums")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    # Short enough that what a server holds that is killed on leaving comes again below.
    ann, bob = (process(redis | {"AGENT_NAME": name, "AMB_REDIS_LEASE": "5"}) for name in ("ann", "bob"))
    async with bus:
        await bus.subscribe("notes.*", seen.append)
        async with Client(ann) as first, Client(bob) as second:
            assert await call(first, "request", topic="sums", message=[1, 2, 3]) == "6"
            for client in (first, second):
                assert await call(client, "read", topic="notes.*", wait=0.1) == []
            sent = await call(first, "publish", topic="notes.a", message="hello", headers={"lang": "en"})
            got = [await call(client, "read", topic="notes.*", limit=1, wait=20) for client in (first, second)]
            with anyio.fail_after(10):
                while not seen:
                    await anyio.sleep(0.01)
        await bus.publish("notes.b", "while both are away")
        async with Client(ann) as again:  # what was not followed by another reading, and what came meanwhile
            back = [note for _ in range(2) for note in await call(again, "read", topic="notes.*", limit=1, wait=20)]
    assert got == [[{"topic": "notes.a", "sender": "ann", "data": "hello"}]] * 2
    assert sorted(note["data"] for note in back) == ["hello", "while both are away"]
    assert (seen[0].id, seen[0].headers["lang"]) == (sent, "en")
