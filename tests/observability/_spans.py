"""Finished spans, and the questions that tests ask of them."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_trace_id

from tests.core._help import eventually


class Spans:
    """What an in-memory exporter has got."""

    def __init__(self, provider: TracerProvider) -> None:
        self.exporter, self.provider = InMemorySpanExporter(), provider

    def all(self, name: str) -> list[ReadableSpan]:
        """The ended spans of that name, in the order in which they began."""
        found = [span for span in self.exporter.get_finished_spans() if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    async def wait(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """As `all`, as soon as there are `count`."""
        await eventually(
            lambda: len(self.all(name)) >= count, lambda: f"{count} spans {name!r}, got {self.names()}", 30
        )
        return self.all(name)

    async def one(self, name: str) -> ReadableSpan:
        """The one span of that name."""
        [span] = await self.wait(name)
        return span

    def names(self) -> list[str]:
        """The names of all that have ended."""
        return [span.name for span in self.exporter.get_finished_spans()]


def trace_id(span: ReadableSpan) -> str:
    """In hexadecimal."""
    return format_trace_id(span.context.trace_id)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Without the prefix that most have."""
    return {name.removeprefix("messaging."): value for name, value in (span.attributes or {}).items()}


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    """Directly, and in the same trace."""
    return child.parent is not None and child.parent.span_id == parent.context.span_id
