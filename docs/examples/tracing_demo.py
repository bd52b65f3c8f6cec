"""Thought, message, tool call, error: one trace across four agents, printed as a tree.

    python -m docs.examples.tracing_demo

Needs amb-core[tracing]. Set OTEL_EXPORTER_OTLP_ENDPOINT, and the same trace goes to a collector too.
"""

from __future__ import annotations

import logging

import anyio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from amb_core import Message, MessageBus, get_tracer, initialize_tracing
from amb_core.errors import RemoteError

SHOWN = (None, "send", "process")  # neither fetching nor settling
bus = MessageBus()
done = anyio.Event()


@bus.responder("tools.search")
async def search(query: str) -> list[str]:
    return [f"a page about {query}"]


@bus.responder("tools.deploy")
async def deploy(version: str) -> str:
    raise PermissionError("no key for production")


@bus.subscriber("agent.thoughts")
async def act(thought: Message) -> None:
    found = await bus.request("tools.search", thought.data)
    try:
        await bus.request("tools.deploy", found.data[0])
    except RemoteError as error:
        await bus.publish("agent.failures", str(error))


@bus.subscriber("agent.failures")
async def report(failure: Message) -> None:
    print(f"{failure.data} (trace {failure.trace_id})\n")
    done.set()


def show(spans: list[ReadableSpan], parent: int | None = None, depth: int = 0) -> None:
    """Print what has this parent, and what has that for a parent."""
    for span in spans:
        if (span.parent.span_id if span.parent else None) == parent:
            error = (span.attributes or {}).get("error.type", "")
            print("    " * depth + f"{span.name} {'! ' + str(error) if error else ''}".rstrip())
            show(spans, span.context.span_id, depth + 1)


async def main() -> None:
    logging.disable(logging.WARNING)  # the tree tells what failed
    spans = InMemorySpanExporter()
    initialize_tracing("tracing-demo", exporter=spans)
    async with bus:
        with get_tracer("planner").start_as_current_span("thinking"):
            await bus.publish("agent.thoughts", "releases")
        with anyio.fail_after(10):
            await done.wait()
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.force_flush()
    ended = [s for s in spans.get_finished_spans() if (s.attributes or {}).get("messaging.operation.type") in SHOWN]
    show(sorted(ended, key=lambda span: span.start_time or 0))


if __name__ == "__main__":
    anyio.run(main)
