"""A receiver of the shape of an OpenTelemetry collector: OTLP over HTTP in protobuf, kept and answered.

It checks what a collector would: the path, the method, the content type, and that the body can be read to its end.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_PROTOBUF = "application/x-protobuf"


class Collector:
    """What has arrived, by service."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[tuple[str, Span]] = []
        self.metrics: list[tuple[str, Metric]] = []
        #: Requests that a collector would have refused.
        self.refused: list[str] = []

    def trace(self, body: bytes) -> bytes:
        """One export of spans."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _service(resource.resource)
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        answer: bytes = ExportTraceServiceResponse().SerializeToString()
        return answer

    def metric(self, body: bytes) -> bytes:
        """One export of metrics."""
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            service = _service(resource.resource)
            self.metrics += [(service, metric) for scope in resource.scope_metrics for metric in scope.metrics]
        answer: bytes = ExportMetricsServiceResponse().SerializeToString()
        return answer


def _service(resource: Any) -> str:
    return next((each.value.string_value for each in resource.attributes if each.key == "service.name"), "")


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port of this machine."""
    collector = Collector()
    paths: dict[str, Callable[[bytes], bytes]] = {"/v1/traces": collector.trace, "/v1/metrics": collector.metric}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            try:
                if self.path not in paths or self.headers["Content-Type"] != _PROTOBUF:
                    raise ValueError(f"{self.path} as {self.headers['Content-Type']}")
                status, answer = 200, paths[self.path](body)
            except Exception as error:  # protobuf has errors of its own
                collector.refused.append(str(error))
                status, answer = 400, b""
            self.send_response(status)
            self.send_header("Content-Type", _PROTOBUF)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
