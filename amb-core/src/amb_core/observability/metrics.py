"""Metrics of every bus of the process, and your own beside them, for Prometheus and OpenTelemetry.

Off until `serve`, `registry` or `export` is called: before that, recording does nothing. Names get the prefix ``amb_``.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from .._backlog import ask_every
from .._observe import observe as _observe
from ..errors import ConfigurationError
from ._durations import HISTOGRAMS, Durations
from ._readings import METRICS

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from prometheus_client import CollectorRegistry

__all__ = ["Endpoint", "count", "export", "gauge", "observe", "registry", "serve", "stop", "track"]

F = TypeVar("F", bound=Callable[..., Any])
#: Seconds between two questions to a broker about what waits there.
BACKLOG_INTERVAL = 15.0
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Sink(Protocol):
    """Where recorded values go."""

    def count(self, name: str, amount: float, labels: dict[str, str]) -> None: ...

    def gauge(self, name: str, value: float, labels: dict[str, str]) -> None: ...

    def observe(self, name: str, value: float, labels: dict[str, str]) -> None: ...


_sinks: dict[str, Sink] = {}
_checked: set[str] = set()


def track(name: str) -> Callable[[F], F]:
    """Decorator: how long a function takes, async or not, in the histogram ``amb_<name>_seconds`` with the label
    `outcome`, "ok" or "error". Raises: ValueError for a name that is none, or AMB's own."""
    full = _full(f"{name}_seconds")

    def decorate(function: F) -> F:
        @functools.wraps(function)
        async def waits(*arguments: Any, **options: Any) -> Any:
            with _timed(full):
                return await function(*arguments, **options)

        @functools.wraps(function)
        def returns(*arguments: Any, **options: Any) -> Any:
            with _timed(full):
                return function(*arguments, **options)

        return cast("F", waits if inspect.iscoroutinefunction(function) else returns)

    return decorate


@contextmanager
def _timed(name: str) -> Iterator[None]:
    begin, outcome = time.perf_counter(), "error"
    try:
        yield
        outcome = "ok"
    finally:
        _record("observe", name, time.perf_counter() - begin, {"outcome": outcome})


def gauge(name: str, value: float, **labels: str) -> None:
    """Set the gauge ``amb_<name>``. Does not block. Raises: ValueError for a name that is none, or AMB's own, and for
    other labels than it had before."""
    _record("gauge", _full(name), value, labels)


def count(name: str, amount: float = 1, **labels: str) -> None:
    """Add to the counter ``amb_<name>``, which Prometheus calls ``amb_<name>_total``. Raises: as `gauge`."""
    _record("count", _full(name), amount, labels)


def observe(name: str, value: float, **labels: str) -> None:
    """Add to the histogram ``amb_<name>``. Raises: as `gauge`."""
    _record("observe", _full(name), value, labels)


def _record(verb: str, name: str, value: float, labels: dict[str, str]) -> None:
    for sink in tuple(_sinks.values()):
        getattr(sink, verb)(name, value, labels)


def _full(name: str) -> str:
    full = f"amb_{name}"
    if full not in _checked:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a metric: use lower-case letters, digits and '_'")
        if full in METRICS or full in HISTOGRAMS:
            raise ValueError(f"{full} is AMB's own metric: choose another name than {name!r}")
        _checked.add(full)
    return full


class Endpoint:
    """Serves the metrics over HTTP until it is closed."""

    def __init__(self, port: int, close: Callable[[], None]) -> None:
        self.port, self._close = port, close

    def close(self) -> None:
        """Stop serving. Blocks until the port is free."""
        self._close()


def serve(port: int = 9464, host: str = "127.0.0.1", *, backlog_interval: float | None = BACKLOG_INTERVAL) -> Endpoint:
    """Turn metrics on, and serve them to Prometheus at ``http://host:port/metrics``, from a thread; port 0 takes a free
    one. Handlers are timed on buses that connect from now on. Raises: OSError if the port is taken; as `registry`."""
    metrics = registry(backlog_interval=backlog_interval)
    from prometheus_client import start_http_server

    server, thread = start_http_server(port, host, metrics)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return Endpoint(server.server_port, close)


def registry(*, backlog_interval: float | None = BACKLOG_INTERVAL) -> CollectorRegistry:
    """Turn metrics on; returns what a Prometheus client library serves, in an app of your own for instance.

    `backlog_interval`: so many seconds pass between two questions to the broker about what waits there for a
    subscription, if it begins from now on; None: it is not asked. Raises: ConfigurationError without the extra
    ``metrics``; ValueError for an interval that is none."""
    try:
        from ._prometheus import Prometheus
    except ImportError as error:
        raise _missing("prometheus-client") from error
    sink = _turn_on("prometheus", _sinks.get("prometheus") or Prometheus(), backlog_interval)
    assert isinstance(sink, Prometheus)
    return sink.registry


def export(provider: MeterProvider | None = None, *, backlog_interval: float | None = BACKLOG_INTERVAL) -> None:
    """Turn metrics on, and give them to OpenTelemetry: to `provider`, or to the one that the program has set, or will
    set. Once in a process. `backlog_interval` as for `registry`. Raises: ConfigurationError without the extra
    ``metrics``, or when it was called before; ValueError for an interval that is none."""
    try:
        from ._opentelemetry import OpenTelemetry
    except ImportError as error:
        raise _missing("opentelemetry-api") from error
    if "opentelemetry" in _sinks:
        raise ConfigurationError("metrics go to OpenTelemetry already: call export() once, or stop() first")
    _turn_on("opentelemetry", OpenTelemetry(provider), backlog_interval)


def stop() -> None:
    """Turn metrics off. Buses that are connected go on timing for nobody until they connect again."""
    _sinks.clear()
    _observe("metrics", None)
    ask_every(None)


def _turn_on(name: str, sink: Sink, backlog_interval: float | None) -> Sink:
    if backlog_interval is not None and not 0 < backlog_interval < math.inf:
        raise ValueError(f"backlog_interval is {backlog_interval!r}: give seconds, or None to ask for no backlogs")
    ask_every(backlog_interval)
    _sinks[name] = sink
    _observe("metrics", lambda system: Durations(system, functools.partial(_record, "observe")))
    return sink


def _missing(what: str) -> ConfigurationError:
    return ConfigurationError(f"metrics need {what}: pip install 'amb-core[metrics]'")
