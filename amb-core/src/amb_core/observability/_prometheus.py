"""Metrics as a Prometheus registry."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ._durations import BUCKETS, HISTOGRAMS
from ._readings import METRICS

T = TypeVar("T", Counter, Gauge, Histogram)
_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class Prometheus:
    """Keeps recorded values, and reads the others when it is asked. Implements `Sink`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Readings())
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._making = threading.Lock()

    def count(self, name: str, amount: float, labels: dict[str, str]) -> None:
        """See `Sink`."""
        self._series(Counter, name, labels).inc(amount)

    def gauge(self, name: str, value: float, labels: dict[str, str]) -> None:
        """See `Sink`."""
        self._series(Gauge, name, labels).set(value)

    def observe(self, name: str, value: float, labels: dict[str, str]) -> None:
        """See `Sink`."""
        self._series(Histogram, name, labels, buckets=BUCKETS).observe(value)

    def _series(self, kind: type[T], name: str, labels: dict[str, str], **options: Any) -> T:
        with self._making:  # handlers may be in threads
            found = self._made.get(name)
            if found is None:
                about = HISTOGRAMS.get(name, "Recorded by the program.")
                found = self._made[name] = kind(name, about, list(labels), registry=self.registry, **options)
        if not isinstance(found, kind):
            raise ValueError(f"{name} is a {type(found).__name__.lower()}, not a {kind.__name__.lower()}")
        return found.labels(**labels) if labels else found


class _Readings:
    """What is read of the buses when somebody asks. Implements prometheus_client's ``Collector``."""

    def collect(self) -> Iterator[Metric]:
        for metric in METRICS.values():
            family = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
            for labels, value in metric.samples().items():
                family.add_metric(labels, value)
            yield family
