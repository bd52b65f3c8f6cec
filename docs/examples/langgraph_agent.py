"""An agent made with LangGraph answers on a topic, and its tool asks another agent: both by the bus.

    python -m docs.examples.langgraph_agent "how tall is Mont Blanc?"

Needs amb-core and langgraph. With AMB_BROKER (such as redis, and AMB_REDIS_URL) the agent may be a process of its own,
that others ask:

    amb run docs.examples.langgraph_agent:bus
    amb request agents.researcher '"how tall is Mont Blanc?"'
"""

from __future__ import annotations

import sys
from typing import Any

import anyio
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from amb_core import MessageBus

FACTS = {"Mont Blanc": "Mont Blanc is 4806 metres tall", "Nile": "the Nile is 6650 kilometres long"}
bus = MessageBus(sender="researcher")


@bus.responder("tools.search", group="search")
async def find(query: str) -> str:
    for name, fact in FACTS.items():
        if name in query:
            return fact
    raise LookupError(f"nothing is known about {query!r}")


@tool
async def search(query: str) -> str:
    """Look something up."""
    reply = await bus.request("tools.search", query, timeout=10.0)
    return str(reply.data)


class StubModel(BaseChatModel):
    """Calls the tool with the question, and answers with what it found. Put a model here, and `bind_tools([search])`."""

    @property
    def _llm_type(self) -> str:
        return "stub"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            said = AIMessage(f"As far as I know, {last.content}.")
        else:
            call = {"name": "search", "args": {"query": last.content}, "id": f"call-{len(messages)}"}
            said = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=said)])


model = StubModel()


async def think(state: MessagesState) -> dict[str, list[BaseMessage]]:
    return {"messages": [await model.ainvoke(state["messages"])]}


graph = StateGraph(MessagesState)
graph.add_node("think", think)
graph.add_node("tools", ToolNode([search]))
graph.add_edge(START, "think")
graph.add_conditional_edges("think", tools_condition)
graph.add_edge("tools", "think")
agent = graph.compile()


@bus.responder("agents.researcher", group="researchers")
async def research(question: str) -> str:
    """What fails in the agent, in a tool too, is for whoever asked: they get a RemoteError."""
    state = await agent.ainvoke({"messages": [HumanMessage(question)]})
    return str(state["messages"][-1].content)


async def main(question: str) -> None:
    async with bus:
        reply = await bus.request("agents.researcher", question, timeout=30.0)
        print(reply.data)


if __name__ == "__main__":
    anyio.run(main, " ".join(sys.argv[1:]) or "how long is the Nile?")
