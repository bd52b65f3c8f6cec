"""Tracing into memory, and both turned off again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from amb_core import _observe, initialize_tracing
from amb_core.observability import metrics
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from ._spans import Spans


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, {}


@pytest.fixture(autouse=True)
def nobody_watches() -> Iterator[None]:
    """Each test begins and ends with everything off."""
    yield
    _observe.observe("tracing", None)
    metrics.stop()


@pytest.fixture
def spans() -> Spans:
    """Tracing is on; what has ended is here."""
    provider = TracerProvider(shutdown_on_exit=False)
    spans = Spans(provider)
    provider.add_span_processor(SimpleSpanProcessor(spans.exporter))
    initialize_tracing("tests", provider=provider)
    return spans
