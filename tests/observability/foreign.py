"""A program that is not AMB, with an official client and its official instrumentation.

``python -m tests.observability.foreign CLIENT URL INTO OUT_OF`` sends 1 to where AMB reads, waits for what AMB then
publishes, and prints its spans as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

tracer = trace.get_tracer("foreign")


async def kafka(url: str, into: str, out_of: str) -> None:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
    from opentelemetry.instrumentation.aiokafka import AIOKafkaInstrumentor

    AIOKafkaInstrumentor().instrument()
    consumer = AIOKafkaConsumer(out_of, bootstrap_servers=url, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=url)
    await consumer.start()
    await producer.start()
    with tracer.start_as_current_span("work"):
        await producer.send_and_wait(into, b"1")
    assert (await consumer.getone()).value == b"2"
    await producer.stop()
    await consumer.stop()


async def rabbitmq(url: str, into: str, out_of: str) -> None:
    import aio_pika
    from aio_pika.abc import AbstractIncomingMessage
    from opentelemetry.instrumentation.aio_pika import AioPikaInstrumentor

    AioPikaInstrumentor().instrument()
    got = anyio.Event()
    exchange_name, _, into = into.partition("/")

    async def receive(message: AbstractIncomingMessage) -> None:
        assert message.body == b"2"
        got.set()

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(exchange_name)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, out_of)
        await queue.consume(receive, no_ack=True)
        with tracer.start_as_current_span("work"):
            await exchange.publish(aio_pika.Message(b"1", content_type="application/json"), into)
        await got.wait()


async def sqs(url: str, into: str, out_of: str) -> None:
    import boto3
    from opentelemetry.instrumentation.boto3sqs import Boto3SQSInstrumentor

    from tests.servers.sqs import KEY, SECRET

    Boto3SQSInstrumentor().instrument()
    client = boto3.client(
        "sqs", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )
    queues = [client.get_queue_url(QueueName=name)["QueueUrl"] for name in (into, out_of)]
    with tracer.start_as_current_span("work"):
        client.send_message(QueueUrl=queues[0], MessageBody="1")
    messages: list[Any] = []
    while not messages:
        messages = client.receive_message(QueueUrl=queues[1], WaitTimeSeconds=2).get("Messages", [])
    for message in messages:  # a span ends when the next message is asked for, or this one is deleted
        assert json.loads(message["Body"])["data"] == 2
        client.delete_message(QueueUrl=queues[1], ReceiptHandle=message["ReceiptHandle"])


async def azure(url: str, into: str, out_of: str) -> None:
    from azure.core.settings import settings
    from azure.servicebus import ServiceBusMessage
    from azure.servicebus.aio import ServiceBusClient

    settings.tracing_implementation = "opentelemetry"
    entity, _, topic = into.partition("/")
    async with ServiceBusClient.from_connection_string(url) as client:
        async with client.get_topic_sender(entity) as sender:
            with tracer.start_as_current_span("work"):
                properties: Any = {"amb_topic": topic}
                await sender.send_messages(ServiceBusMessage("1", application_properties=properties))
        async with client.get_subscription_receiver(entity, out_of) as receiver:
            body = b""
            while body != b"2":  # its own message is for this subscription too
                [message] = await receiver.receive_messages(1)
                body = b"".join(message.body)
                await receiver.complete_message(message)


CLIENTS: dict[str, Callable[..., Awaitable[None]]] = {
    "azure": azure, "kafka": kafka, "rabbitmq": rabbitmq, "sqs": sqs,
}  # fmt: skip


def told(span: ReadableSpan) -> dict[str, Any]:
    parents = [span.parent] if span.parent else []
    return {
        "name": span.name,
        "trace": format_trace_id(span.context.trace_id),
        "id": format_span_id(span.context.span_id),
        "origins": [
            [format_trace_id(each.trace_id), format_span_id(each.span_id)]
            for each in (*parents, *(link.context for link in span.links))
        ],
    }


async def main(client: str = "", *places: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with anyio.fail_after(40):
        await CLIENTS[client](*places)
    print(json.dumps([told(span) for span in exporter.get_finished_spans()]))


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
