"""The page of ``agentmesh-message-bus`` (requirement text 001): tracing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.otlp import Collector, collecting

ROOT = Path(__file__).resolve().parents[2]
TRACING = """
from amb_core import MessageBus, get_tracer, initialize_tracing

# Initialize tracing (usually done once at startup)
initialize_tracing("my-agent-system")

# Get a tracer for creating spans
tracer = get_tracer("agent-workflow")

async with MessageBus() as bus:
    # Messages published within a span automatically get the trace_id
    with tracer.start_as_current_span("agent-thinking"):
        await bus.publish("agent.thoughts", {"thought": "Processing data"})

    # Or explicitly set trace_id for cross-system tracing
    await bus.publish(
        "agent.action",
        {"action": "execute"},
        trace_id="custom-trace-id-from-upstream"
    )
"""
_PROGRAM = "import asyncio, sys; from tests.snippets._run import run; asyncio.run(run(sys.stdin.read(), {}))"


@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_opentelemetry_tracing(redis_url: str, broker: str) -> None:
    with collecting() as collector:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", _PROGRAM],
            env={**os.environ, "AMB_BROKER": broker, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
            cwd=ROOT, input=TRACING, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    _check(collector, broker)


def _check(collector: Collector, broker: str) -> None:
    assert {service for service, _ in collector.spans} == {"my-agent-system"}
    spans = {span.name: span for _, span in collector.spans}
    thought, published, action = (
        spans[name] for name in ("agent-thinking", "publish agent.thoughts", "publish agent.action")
    )
    assert published.trace_id == thought.trace_id and published.parent_span_id == thought.span_id
    told = {each.key: each.value.string_value for each in action.attributes}
    assert told["amb.trace_id"] == "custom-trace-id-from-upstream" and told["messaging.system"] == broker
