"""A schema registry with the Confluent API: Apicurio Registry, from its Maven artifact. It keeps all in memory.

Fetched once, 109 MB, into ``~/.cache/amb-tests`` (or ``AMB_TEST_CACHE``). The newest line that runs on Java 17.
"""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import ssl
import sys
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from .maven import cache, maven
from .process import MissingServer, Server, free_ports, program, running

VERSION = "3.0.9"
USER, PASSWORD, TOKEN = "amb", "correct-horse", "correct-staple"
_PATH = "/apis/ccompat/v7"
_JAVA = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


class SchemaRegistry(msgspec.Struct, frozen=True):
    """A registry, and where it is."""

    host: str
    port: int
    process: Server

    @property
    def url(self) -> str:
        """For ``schema_registry_url``."""
        return f"http://{self.host}:{self.port}{_PATH}"

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """What it answers, outside of AMB."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, method=method)
        request.add_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def alone() -> Iterator[SchemaRegistry]:
    """One registry; subjects have to stay backward compatible, as is the rule with Confluent's own."""
    home = _home()
    with tempfile.TemporaryDirectory(prefix="amb-registry-") as name:
        port = free_ports(1)[0]
        where = ["-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}"]
        jar = str(home / f"apicurio-registry-app-{VERSION}-runner.jar")
        server = Server(
            [program("java", "openjdk-17-jre-headless"), *_JAVA, *where, "-jar", jar],
            Path(name),
            lambda: _answers(port),
        )
        with running(server):
            found = SchemaRegistry("127.0.0.1", port, server)
            found.ask("PUT", "/config", {"compatibility": "BACKWARD"})
            yield found


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{_PATH}/subjects", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _home() -> Path:
    """The folder of the program. Raises: MissingServer, where neither Maven nor an earlier run has it."""
    home = cache() / f"apicurio-registry-{VERSION}"
    if home.exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="apicurio-", dir=home.parent) as name:
        folder = Path(name)
        artifact = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
        maven("the schema registry", folder, "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={folder}")
        with tarfile.open(folder / f"apicurio-registry-app-{VERSION}-all.tar.gz") as archive:
            archive.extractall(folder / "home", filter="data")
        try:
            (folder / "home").rename(home)
        except OSError as error:  # somebody else was quicker
            if not home.exists():
                raise MissingServer(f"the schema registry cannot be kept in {home}: {error}") from error
            shutil.rmtree(folder / "home")
    return home


class Front:
    """What stands before a registry in production: it wants a password, and may be down. It counts."""

    def __init__(self, behind: SchemaRegistry, tls: ssl.SSLContext | None = None) -> None:
        self.behind, self._tls = behind, tls
        #: Method and path of each request that came.
        self.asked: list[tuple[str, str]] = []
        #: Answer with this status, instead of asking the registry.
        self.status = 0
        #: Before answering, wait until this is set.
        self.go = threading.Event()
        self.go.set()
        self.port = free_ports(1)[0]

    @property
    def url(self) -> str:
        """For ``schema_registry_url``, without user and password."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}{_PATH}"

    @contextmanager
    def up(self) -> Iterator[Front]:
        """Listens while the block runs; outside of it, connections are refused."""
        server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        server.daemon_threads = True
        if self._tls is not None:
            server.socket = self._tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self.go.set()
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(front: Front) -> type[BaseHTTPRequestHandler]:
    wanted = ("Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(), f"Bearer {TOKEN}")

    class Handler(BaseHTTPRequestHandler):
        # One request a connection: a front that goes away leaves none open.
        def answer(self) -> None:
            front.asked.append((self.command, self.path.removeprefix(_PATH)))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            front.go.wait(30)
            if front.status:
                self.say(front.status, b'{"error_code": 50001, "message": "out of order"}')
            elif self.headers.get("Authorization") not in wanted:
                self.say(401, b'{"error_code": 401, "message": "Unauthorized"}')
            else:
                self.say(*self.forward(body))

        do_GET = do_POST = answer

        def forward(self, body: bytes) -> tuple[int, bytes]:
            link = http.client.HTTPConnection(front.behind.host, front.behind.port, timeout=30)
            try:
                link.request(self.command, self.path, body, {"Content-Type": self.headers.get("Content-Type", "")})
                answer = link.getresponse()
                return answer.status, answer.read()
            finally:
                link.close()

        def say(self, status: int, body: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # who asked has gone

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


if __name__ == "__main__":  # fetch it now, where a slow network has all the time it needs
    try:
        _home()
    except MissingServer as missing:
        print(missing, file=sys.stderr)
