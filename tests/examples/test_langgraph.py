"""The agent: as one program, as a process that others ask over Redis, and when its tool fails."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from amb_core import RemoteError

from tests.cli._amb import amb, environment, started
from tests.docs._page import ROOT

pytestmark = pytest.mark.anyio
#: LangChain warns of its own at import; what the example does wrong is an error.
STRICT = {"PYTHONWARNINGS": "error"}


def test_it_answers_a_question() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "docs.examples.langgraph_agent", "how tall is Mont Blanc?"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=environment(STRICT),
    )
    assert (done.stdout, done.stderr) == ("As far as I know, Mont Blanc is 4806 metres tall.\n", "")


def test_others_ask_it_over_redis(redis: dict[str, str], tmp_path: Path) -> None:
    agent = ("run", "docs.examples.langgraph_agent:bus")
    with started(*agent, log=tmp_path / "log", env=redis | STRICT, cwd=ROOT) as running:
        running.until("is live on")
        done = amb("request", "agents.researcher", '"how long is the Nile?"', "--timeout", "30", env=redis)
        code, _ = running.end(signal.SIGTERM)
    assert (done.code, code) == (0, 0), done.err + running.said
    assert "As far as I know, the Nile is 6650 kilometres long." in done.out


async def test_the_model_decides_the_tool_asks_and_the_answer_is_from_the_other_agent(
    example: Callable[[str], ModuleType],
) -> None:
    module = example("langgraph_agent")
    asked: list[str] = []
    async with module.bus as bus:
        await bus.subscribe(
            "tools.search", lambda message: asked.append(message.data), group="observer", in_thread=False
        )
        state = await module.agent.ainvoke({"messages": [("user", "how long is the Nile?")]})
        with pytest.raises(RemoteError, match="nothing is known about 'who am I"):
            await bus.request("agents.researcher", "who am I?", timeout=10)
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][2].content == "the Nile is 6650 kilometres long"
    assert asked == ["how long is the Nile?", "who am I?"]
