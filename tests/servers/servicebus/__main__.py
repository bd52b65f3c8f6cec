"""``python -m tests.servers.servicebus --port PORT [--config FILE] [--journal FILE] [--certificate FILE]``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
from pathlib import Path

import msgspec

from .config import Config, make
from .journal import Journal
from .listener import listen


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="servicebus")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, action="append", required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--certificate", type=Path, help="a PEM file with a key and its chain: TLS is spoken too")
    asyncio.run(_serve(parser.parse_args()))


async def _serve(given: argparse.Namespace) -> None:
    config = msgspec.json.decode(given.config.read_bytes(), type=Config) if given.config else Config()
    journal = Journal(given.journal)
    service = make(config, journal)
    context = None
    if given.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(given.certificate)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    ageing = loop.create_task(service.namespace.delete_idle())
    try:
        async with listen(service, given.host, given.port, context):
            await ended.wait()
    finally:
        ageing.cancel()
        journal.flush()


if __name__ == "__main__":
    main()
