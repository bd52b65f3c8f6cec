"""OpenTelemetry traces, turned on by one call; without OpenTelemetry the same program runs untraced."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from .._observe import observe

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["get_tracer", "initialize_tracing"]

log = logging.getLogger("amb")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_provider: TracerProvider | None = None


def initialize_tracing(
    service_name: str, *, provider: TracerProvider | None = None, exporter: SpanExporter | None = None
) -> None:
    """Trace every bus that connects from now on.

    Spans go to `provider`; without it to the provider that the program has set for OpenTelemetry; without that, one
    is made and set, of the service `service_name`; it exports by OTLP over HTTP if OTEL_EXPORTER_OTLP_ENDPOINT (or
    ..._TRACES_ENDPOINT) is set, else trace ids travel and nothing is exported. `exporter` gets the spans in any case.
    Calling it again changes the provider. Does not block, touches no network. Without the extra ``tracing`` it logs a
    warning and does nothing. Raises: TypeError for an exporter that the provider cannot have."""
    global _provider
    try:
        from ._spans import Spans
    except ImportError as error:
        log.warning("no tracing: %s; pip install 'amb-core[tracing]'", error)
        return
    _provider = provider or _program_provider() or _new_provider(service_name)
    if exporter is not None:
        _export(_provider, exporter)
    tracer = get_tracer("amb")
    observe("tracing", lambda system: Spans(tracer, system))


def get_tracer(name: str) -> Tracer:
    """A tracer for spans of your own; messages published inside one belong to its trace. Without OpenTelemetry its
    spans do nothing."""
    try:
        from opentelemetry import trace
    except ImportError:
        return cast("Tracer", _NoTracer())
    return trace.get_tracer(name, tracer_provider=_provider)


def _program_provider() -> TracerProvider | None:
    from opentelemetry import trace

    found = trace.get_tracer_provider()
    return None if isinstance(found, trace.ProxyTracerProvider) else found


def _new_provider(service_name: str) -> TracerProvider:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    made = TracerProvider(resource=Resource.create({"service.name": service_name}))
    if any(os.environ.get(name) for name in _ENDPOINTS):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        _export(made, OTLPSpanExporter())
    trace.set_tracer_provider(made)
    return made


def _export(provider: TracerProvider, exporter: SpanExporter) -> None:
    from opentelemetry.sdk import trace
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not isinstance(provider, trace.TracerProvider):
        raise TypeError(f"a {type(provider).__name__} takes no exporter: configure it where it is made")
    provider.add_span_processor(BatchSpanProcessor(exporter))


class _NoTracer:
    """A tracer where there is no OpenTelemetry."""

    def start_span(self, name: str, *options: Any, **more: Any) -> _NoSpan:
        return _NoSpan()

    @contextmanager
    def start_as_current_span(self, name: str, *options: Any, **more: Any) -> Iterator[_NoSpan]:
        yield _NoSpan()


class _NoSpan:
    """Takes whatever a span can be told, and forgets it."""

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
