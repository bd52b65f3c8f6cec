"""From and to other programs, whose clients are instrumented by their own official packages: one trace all the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from amb_core import Message, MessageBus
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from opentelemetry.trace import format_span_id

from tests.cli._amb import environment
from tests.docs._page import ROOT
from tests.servers import sqs

from ._brokers import SERVERS, broker, new_word
from ._spans import Spans, trace_id

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Foreign(msgspec.Struct, frozen=True):
    """A span of the other program."""

    name: str
    trace: str
    id: str
    #: Its parent and its links, as trace and span.
    origins: list[tuple[str, str]]


class Way(NamedTuple):
    """What the other program is told: the server, where AMB reads, where it reads what AMB publishes."""

    url: str
    into: str
    out_of: str


async def run(client: str, way: Way) -> list[Foreign]:
    """The other program, to its end."""
    command = [sys.executable, "-m", "tests.observability.foreign", client, *way]
    done = await anyio.run_process(command, check=False, cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return msgspec.convert(json.loads(done.stdout), list[Foreign])


@asynccontextmanager
async def kafka(server: Any, made: Any, word: str) -> AsyncIterator[Way]:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(f"{word}.{name}", 1, 1) for name in ("in", "out")])
    finally:
        await admin.close()
    yield Way(server.address, f"{word}.in", f"{word}.out")


@asynccontextmanager
async def rabbitmq(server: Any, made: Any, word: str) -> AsyncIterator[Way]:
    yield Way(server.url, f"{made.exchange}/{word}.in", f"{word}.out")


@asynccontextmanager
async def sqs_queues(server: Any, made: Any, word: str) -> AsyncIterator[Way]:
    names = [f"{made.queue_prefix}{word}{end}-_other" for end in ("in", "out")]
    async with sqs.client(server.url) as client:
        await client.create_queue(QueueName=names[1])
    yield Way(server.url, *names)


@asynccontextmanager
async def azure(server: Any, made: Any, word: str) -> AsyncIterator[Way]:
    async with ServiceBusAdministrationClient.from_connection_string(
        server.connection_string, connection_verify=server.ca
    ) as admin:
        await admin.create_subscription(made.topic_name, word)
        try:
            yield Way(server.connection_string, f"{made.topic_name}/{word}.in", word)
        finally:
            await admin.delete_subscription(made.topic_name, word)


PLACES = {"azure": azure, "kafka": kafka, "rabbitmq": rabbitmq, "sqs": sqs_queues}


@pytest.mark.parametrize("name", PLACES)
async def test_an_instrumented_programs_trace_goes_through_amb_and_back_to_it(
    name: str, request: pytest.FixtureRequest, spans: Spans
) -> None:
    word = new_word()
    made, server = broker(name, request), request.getfixturevalue(SERVERS[name][0])
    bus = MessageBus(made)
    dot = "" if name == "sqs" else "."

    async def answer(message: Message) -> None:
        await bus.publish(f"{word}{dot}out", message.data + 1)

    async with bus:
        await bus.subscribe(f"{word}{dot}in", answer, group="other")
        async with PLACES[name](server, made, word) as way:
            foreign = await run(name, way)
        process = await spans.one(f"process {word}{dot}in")
    [work] = [span for span in foreign if span.name == "work"]
    sent = {(span.trace, span.id) for span in foreign if span.trace == work.trace}
    assert process.parent is not None and (trace_id(process), format_span_id(process.parent.span_id)) in sent
    [published] = spans.all(f"publish {word}{dot}out")
    ours = trace_id(published), format_span_id(published.context.span_id)
    assert ours[0] == work.trace
    assert [span.name for span in foreign if ours in span.origins], foreign
