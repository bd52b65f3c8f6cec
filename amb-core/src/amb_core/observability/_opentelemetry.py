"""Metrics as OpenTelemetry instruments, for whatever exporter the program has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from ._durations import BUCKETS, HISTOGRAMS
from ._readings import METRICS, Metric

_Record = Callable[[float, dict[str, str]], None]


class OpenTelemetry:
    """Hands values to instruments of the same names. Implements `Sink`."""

    def __init__(self, provider: MeterProvider | None) -> None:
        self._meter = get_meter("amb") if provider is None else provider.get_meter("amb")
        self._made: dict[tuple[str, str], _Record] = {}
        for metric in METRICS.values():
            self._observable(metric)

    def count(self, name: str, amount: float, labels: dict[str, str]) -> None:
        """See `Sink`."""
        self._instrument("counter", name, lambda: self._meter.create_counter(name).add)(amount, labels)

    def gauge(self, name: str, value: float, labels: dict[str, str]) -> None:
        """See `Sink`."""
        self._instrument("gauge", name, lambda: self._meter.create_gauge(name).set)(value, labels)

    def observe(self, name: str, value: float, labels: dict[str, str]) -> None:
        """See `Sink`."""
        self._instrument("histogram", name, lambda: self._histogram(name))(value, labels)

    def _histogram(self, name: str) -> _Record:
        unit = "s" if name.endswith("_seconds") else ""
        return self._meter.create_histogram(
            name, unit, HISTOGRAMS.get(name, ""), explicit_bucket_boundaries_advisory=BUCKETS
        ).record

    def _instrument(self, kind: str, name: str, make: Callable[[], _Record]) -> _Record:
        found = self._made.get((kind, name))
        if found is None:
            found = self._made[kind, name] = make()
        return found

    def _observable(self, metric: Metric) -> None:
        def read(options: CallbackOptions) -> Iterator[Observation]:
            for labels, value in metric.samples().items():
                yield Observation(value, dict(zip(metric.labels, labels, strict=True)))

        if metric.kind == "counter":
            self._meter.create_observable_counter(metric.name, [read], description=metric.help)
        else:
            self._meter.create_observable_gauge(metric.name, [read], description=metric.help)
