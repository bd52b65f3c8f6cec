"""Traces and metrics reach an OpenTelemetry collector, from a program that only sets the usual variable."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.servers.otlp import Collector, collecting

TRACED = """
import anyio
from amb_core import MessageBus, initialize_tracing
initialize_tracing("my-agent-system")
async def main():
    async with MessageBus() as bus:
        await bus.subscribe("t", print)
        await bus.publish("t", 1)
anyio.run(main)
"""
MEASURED = """
import anyio
from amb_core import MessageBus
from amb_core.observability import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
provider = MeterProvider(
    [PeriodicExportingMetricReader(OTLPMetricExporter())], Resource.create({"service.name": "my-agent-system"})
)
metrics.export(provider)
async def main():
    async with MessageBus() as bus:
        await bus.subscribe("t", print)
        await bus.publish("t", 1)
    metrics.gauge("message_lag_seconds", 0.5)
    metrics.count("orders", 3, kind="new")
    provider.force_flush()
anyio.run(main)
"""


def run(program: str, collector: Collector) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert collector.refused == []


def test_spans_are_exported_before_the_program_ends() -> None:
    with collecting() as collector:
        run(TRACED, collector)
    spans = {span.name: span for _, span in collector.spans}
    assert set(spans) == {"publish t", "receive t", "process t", "ack t"}
    assert {service for service, _ in collector.spans} == {"my-agent-system"}
    assert spans["process t"].parent_span_id == spans["publish t"].span_id
    [system] = [each.value.string_value for each in spans["publish t"].attributes if each.key == "messaging.system"]
    assert system == "memory"


def test_metrics_are_exported_under_the_names_that_prometheus_has() -> None:
    with collecting() as collector:
        run(MEASURED, collector)
    metrics = {metric.name: metric for _, metric in collector.metrics}
    assert {"amb_published", "amb_acked", "amb_connected", "amb_handler_seconds"} <= set(metrics)
    [published] = metrics["amb_published"].sum.data_points
    assert published.as_double == 1 and metrics["amb_published"].sum.is_monotonic
    [handled] = metrics["amb_handler_seconds"].histogram.data_points
    assert handled.count == 1 and {each.key for each in handled.attributes} == {"system", "topic", "group", "outcome"}
    assert metrics["amb_message_lag_seconds"].gauge.data_points[0].as_double == 0.5
    assert metrics["amb_orders"].sum.data_points[0].as_int == 3
    assert {service for service, _ in collector.metrics} == {"my-agent-system"}
