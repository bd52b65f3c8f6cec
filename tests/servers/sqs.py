"""SQS and SNS, emulated by ministack in an environment of its own: it pins another botocore than aiobotocore does."""

from __future__ import annotations

import subprocess
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import msgspec
from aiobotocore.session import AioSession

from .process import MissingServer, Server, free_ports, running

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".tools" / "ministack"
#: The emulator checks no credentials; clients sign all the same.
KEY, SECRET = "AKIATEST", "test-secret"


class SqsServer(msgspec.Struct, frozen=True):
    """A server for SQS and SNS. What it stores survives stopping, not killing."""

    url: str
    host: str
    port: int
    process: Server


@contextmanager
def alone() -> Iterator[SqsServer]:
    """One server."""
    program = _program()
    with tempfile.TemporaryDirectory(prefix="amb-sqs-") as name:
        folder = Path(name)
        (port,) = free_ports(1)
        settings = {
            "GATEWAY_PORT": str(port),
            "PERSIST_STATE": "1",
            "STATE_DIR": str(folder / "state"),
            "LOG_LEVEL": "WARNING",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = ["env", *(f"{key}={value}" for key, value in settings.items()), str(program)]
        command += ["--bind", f"127.0.0.1:{port}", "--workers", "0", "--graceful-timeout", "1", "ministack.app:app"]
        server = Server(command, folder, lambda: _answers(port))
        with running(server):
            yield SqsServer(f"http://127.0.0.1:{port}", "127.0.0.1", port, server)


@asynccontextmanager
async def client(url: str, service: str = "sqs") -> AsyncIterator[Any]:
    """A client of its own, as other programs have it."""
    create: Any = AioSession().create_client
    async with create(
        service, endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        verify=False,
    ) as made:  # fmt: skip
        yield made


def _answers(port: int) -> bool:
    """Whether SQS answers its protocol."""
    try:
        asked = f"http://127.0.0.1:{port}/?Action=ListQueues&Version=2012-11-05"
        with urllib.request.urlopen(asked, timeout=2) as answer:
            return b"ListQueuesResponse" in answer.read()
    except (URLError, OSError):
        return False


def _program() -> Path:
    program = HOME / "bin" / "hypercorn"
    if not program.exists():
        made = subprocess.run(["bash", str(ROOT / "scripts" / "get-ministack")], capture_output=True, text=True)
        if made.returncode or not program.exists():
            raise MissingServer(f"ministack could not be installed into {HOME}: {made.stderr.strip()[-300:]}")
    return program
