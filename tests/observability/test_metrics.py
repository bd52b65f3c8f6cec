"""What a bus did and does, in numbers that a Prometheus server can read."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from amb_core import CircuitBreaker, InMemoryBroker, Message, MessageBus, RetryPolicy, Stats
from amb_core._lifecycle import Host
from amb_core.errors import ConfigurationError
from amb_core.observability import metrics
from amb_core.observability._readings import METRICS
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.core._help import DLQ, Collector, eventually

pytestmark = pytest.mark.anyio
Value = Callable[..., float | None]


@pytest.fixture
def registry() -> CollectorRegistry:
    return metrics.registry()


@pytest.fixture
def value(registry: CollectorRegistry) -> Value:
    """A sample's value now, on the memory broker unless another `system` is given."""

    def read(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"system": "memory", **labels})

    return read


async def test_what_the_bus_counts_is_there_under_its_name(value: Value) -> None:
    before = {field: value(f"amb_{field}_total") or 0 for field in Stats.__struct_fields__}
    policy = RetryPolicy(max_retries=1, initial_delay=0.01)
    async with MessageBus(dead_letter_queue=DLQ, retry_policy=policy) as bus:
        await bus.subscribe("good", Collector())
        await bus.subscribe("bad", Collector(ValueError("no")))
        await bus.publish("good", 1)
        await bus.publish("bad", 1)
        await eventually(lambda: bus.stats.dead_lettered == 1 and bus.stats.acked >= 1, "both to be settled")
    grown = {field: (value(f"amb_{field}_total") or 0) - before[field] for field in before}
    assert grown == {field: getattr(bus.stats, field) for field in before}
    assert grown["retried"] == grown["dead_lettered"] == 1 and grown["failed"] == grown["published"] == 2


async def test_a_counter_does_not_fall_when_its_bus_is_gone(value: Value) -> None:
    async with MessageBus() as bus:
        await bus.publish("t", 1)
    before = value("amb_published_total")
    del bus
    gc.collect()
    assert value("amb_published_total") == before


async def test_a_bus_that_goes_while_it_is_read_is_counted_once() -> None:
    """A bus is freed whenever Python likes, also between two buses that are read."""
    published = METRICS["amb_published"]
    gone: list[weakref.ref[Host]] = []

    def read(host: Host) -> Iterator[tuple[tuple[str, ...], float]]:
        yield from published.read(host)
        collect = host is gone[0]()  # once: with all that other tests have left it takes a while
        del host
        if collect:
            gc.collect()

    async with MessageBus() as first:
        gone.append(weakref.ref(first.host))
        await first.publish("t", 1)
    async with MessageBus() as second:
        before = published.samples()
        gc.disable()
        try:
            del first
            assert gone[0]() is not None, "it is garbage that was not collected yet"
            assert msgspec.structs.replace(published, read=read).samples() == before
        finally:
            gc.enable()
        gc.collect()
        assert gone[0]() is None
        assert published.samples() == before
        assert second.host is not None


async def test_what_runs_and_waits_is_told_by_subscription(value: Value) -> None:
    go = threading.Event()

    def slow(data: int) -> None:
        go.wait(10)

    labels = {"topic": "jobs.*", "group": "workers"}
    async with MessageBus() as bus:
        await bus.subscribe("jobs.*", slow, group="workers", concurrency=2)
        for number in range(5):
            await bus.publish("jobs.new", number)
        await eventually(lambda: value("amb_in_flight", **labels) == 2, "two handlers")
        assert value("amb_connected") == 1
        assert value("amb_consuming", **labels) == 1
        unsettled, waiting = value("amb_unsettled", **labels), value("amb_queue_depth", **labels)
        assert unsettled is not None and waiting is not None and unsettled >= 2 and unsettled + waiting == 5
        go.set()
        await eventually(lambda: bus.stats.acked == 5, "all to be handled")
        assert value("amb_queue_depth", **labels) == value("amb_in_flight", **labels) == 0
    assert value("amb_in_flight", **labels) is None
    assert value("amb_connected") == 0


async def test_how_long_handlers_took_and_how_they_ended(value: Value) -> None:
    async with MessageBus() as bus:
        await bus.subscribe("timed", Collector(ValueError("no"), failures=1))
        await bus.publish("timed", 1)
        await bus.publish("timed", 2)
        await eventually(lambda: bus.stats.acked == 1, "the second")
    for outcome in ("ok", "error"):
        assert value("amb_handler_seconds_count", topic="timed", group="", outcome=outcome) == 1
    assert (value("amb_publish_seconds_count", outcome="ok") or 0) >= 2
    assert (value("amb_settle_seconds_count", topic="timed", group="", outcome="ok") or 0) >= 1


async def test_an_open_breaker_shows(value: Value) -> None:
    async with MessageBus(circuit_breaker=CircuitBreaker(failure_threshold=1)) as bus:
        await bus.subscribe("fragile", Collector(ValueError("no")))
        assert value("amb_breaker_state", topic="fragile") == 0
        await bus.publish("fragile", 1)
        await eventually(lambda: value("amb_breaker_state", topic="fragile") == 2, "the breaker to open")


async def test_what_a_broker_cannot_tell_is_not_there(registry: CollectorRegistry) -> None:
    """While the connection is lost, what was known before is not told."""
    async with MessageBus(InMemoryBroker()) as bus:
        await bus.subscribe("known", Collector())
        feed = bus.host.supervised[0].consumer.feed
        labels = {"system": "memory", "topic": "known", "group": ""}
        await eventually(lambda: registry.get_sample_value("amb_lag", labels) == 0, "an answer")
        for now, told in ((None, None), (feed, 0)):
            bus.host.supervised[0].consumer.feed = now
            assert [registry.get_sample_value(name, labels) for name in ("amb_queue_depth", "amb_lag")] == [told, told]


async def test_the_documented_lines_record(registry: CollectorRegistry) -> None:
    @metrics.track("message_processing")
    async def handle_message(msg: Message) -> None:
        lag = time.time() - msg.timestamp
        metrics.gauge("message_lag_seconds", lag)

    async with MessageBus() as bus:
        await bus.subscribe("t", handle_message)
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked == 1, "the message")
    assert registry.get_sample_value("amb_message_processing_seconds_count", {"outcome": "ok"}) == 1
    assert 0 <= (registry.get_sample_value("amb_message_lag_seconds") or -1) < 5


def test_own_metrics_of_every_kind(registry: CollectorRegistry) -> None:
    @metrics.track("parsing")
    def parse(text: str) -> int:
        return int(text)

    assert parse("7") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        parse("x")
    metrics.count("orders", 2, kind="new")
    metrics.count("orders", kind="new")
    metrics.observe("size_bytes", 3)
    assert registry.get_sample_value("amb_parsing_seconds_count", {"outcome": "error"}) == 1
    assert registry.get_sample_value("amb_orders_total", {"kind": "new"}) == 3
    assert registry.get_sample_value("amb_size_bytes_sum") == 3


def test_names_that_would_lie_are_refused(registry: CollectorRegistry) -> None:
    for name in ("in_flight", "handler_seconds"):
        with pytest.raises(ValueError, match="AMB's own"):
            metrics.gauge(name, 1)
    with pytest.raises(ValueError, match="no name"):
        metrics.track("Message Processing")
    metrics.gauge("both", 1)
    with pytest.raises(ValueError, match="is a gauge, not a counter"):
        metrics.count("both")


def test_while_it_is_off_recording_costs_nothing_and_loads_nothing() -> None:
    program = (
        "import sys; from amb_core.observability import metrics; metrics.gauge('x', 1); metrics.track('y')(print)(1)\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus_client'))])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n[]\n", done.stderr


def test_without_the_libraries_the_advice_is_what_to_install() -> None:
    program = (
        "import sys; sys.modules.update({'prometheus_client': None, 'opentelemetry': None})\n"
        "from amb_core.errors import ConfigurationError\n"
        "from amb_core.observability import metrics\n"
        "for turn_on in (metrics.serve, metrics.export):\n"
        "    try: turn_on()\n"
        "    except ConfigurationError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("pip install 'amb-core[metrics]'") == 2, done.stderr


@pytest.fixture
def endpoint() -> Iterator[metrics.Endpoint]:
    endpoint = metrics.serve(port=0)
    yield endpoint
    endpoint.close()


async def test_the_endpoint_serves_what_a_prometheus_server_reads(endpoint: metrics.Endpoint) -> None:
    async with MessageBus() as bus:
        await bus.subscribe("t", Collector())
        await bus.publish("t", 1)
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=10) as answer:
            families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert families.keys() >= METRICS.keys()
    for name, metric in METRICS.items():
        assert families[name].type == metric.kind
    assert all(sample.name == "amb_published_total" for sample in families["amb_published"].samples)


async def test_prometheus_and_opentelemetry_say_the_same(registry: CollectorRegistry) -> None:
    reader = InMemoryMetricReader()
    metrics.export(MeterProvider([reader], shutdown_on_exit=False))
    with pytest.raises(ConfigurationError, match="once"):
        metrics.export()
    async with MessageBus() as bus:
        await bus.subscribe("t", Collector())
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked == 1, "the message")
    metrics.gauge("level", 7)
    told: dict[str, Any] = {}
    for resource in reader.get_metrics_data().resource_metrics:  # type: ignore[union-attr]
        for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
            told[metric.name] = metric.data.data_points
    assert told["amb_level"][0].value == 7
    assert told["amb_handler_seconds"][0].count == 1
    compared = 0
    for name in METRICS.keys() & told.keys():
        for point in told[name]:
            sample = f"{name}_total" if METRICS[name].kind == "counter" else name
            labels = {key: str(text) for key, text in (point.attributes or {}).items()}
            assert registry.get_sample_value(sample, labels) == point.value, name
            compared += 1
    assert compared >= len(Stats.__struct_fields__)
