"""One trace through everything that a message leads to, by the semantic conventions."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections import Counter
from types import FrameType

import pytest
from amb_core import AckMode, DeadLetterQueue, InMemoryBroker, Message, MessageBus, RetryPolicy, get_tracer
from opentelemetry import trace
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id

from tests.core._help import Collector

from ._spans import Spans, attributes, is_child, trace_id

pytestmark = pytest.mark.anyio
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
FOREIGN = f"00-{TRACE}-00f067aa0ba902b7-01"


async def test_one_trace_goes_through_publish_handler_publish_request_and_reply(spans: Spans) -> None:
    replies: list[Message] = []
    async with MessageBus() as bus:

        async def order(message: Message) -> None:
            await bus.publish("audit", message.data)
            replies.append(await bus.request("price", message.data))

        @bus.responder("price")
        async def price(request: int) -> int:
            return request * 2

        await bus.subscribe("orders", order)
        audit = Collector()
        await bus.subscribe("audit", audit)
        with get_tracer("test").start_as_current_span("thinking"):
            await bus.publish("orders", 21)
        await spans.wait("ack orders")
        await audit.wait()
    tree = [
        ("thinking", "publish orders"),
        ("publish orders", "process orders"),
        ("publish orders", "receive orders"),
        ("publish orders", "ack orders"),
        ("process orders", "publish audit"),
        ("publish audit", "process audit"),
        ("process orders", "publish price"),
        ("publish price", "process price"),
        ("process price", "publish (temporary)"),
        ("publish (temporary)", "receive (temporary)"),
    ]
    for parent, child in tree:
        assert is_child(await spans.one(child), await spans.one(parent)), (child, parent)
    one = trace_id(await spans.one("thinking"))
    assert {trace_id(span) for span in spans.exporter.get_finished_spans()} == {one}
    assert replies[0].data == 42 and replies[0].trace_id == audit.messages[0].trace_id == one


async def test_spans_say_what_the_conventions_ask_for(spans: Spans) -> None:
    async with MessageBus() as bus:
        await bus.subscribe("orders.*", Collector(), group="billing")
        id = await bus.publish("orders.new", "abc", correlation_id="c-1")
        await spans.wait("ack orders.*")
    told = {"system": "memory", "destination.name": "orders.new", "message.id": id}
    body = {"message.body.size": 5, "message.conversation_id": "c-1"}
    member = {"consumer.group.name": "billing", "destination.template": "orders.*", "amb.message.attempt": 1}
    expected = [
        ("publish orders.new", SpanKind.PRODUCER, "publish", "send", told | body),
        ("receive orders.*", SpanKind.CLIENT, "receive", "receive", told | body | member),
        ("process orders.*", SpanKind.CONSUMER, "process", "process", told | body | member),
        ("ack orders.*", SpanKind.CLIENT, "ack", "settle", told | body | member),
    ]
    for name, kind, operation, type, rest in expected:
        span = await spans.one(name)
        assert span.kind is kind
        assert attributes(span) == {"operation.name": operation, "operation.type": type} | rest
        assert span.status.status_code is StatusCode.UNSET
    [link] = (await spans.one("process orders.*")).links
    assert link.context.span_id == (await spans.one("publish orders.new")).context.span_id


async def test_every_attribute_is_one_of_the_conventions(spans: Spans) -> None:
    known = {value for name, value in vars(messaging_attributes).items() if name.startswith("MESSAGING_")}
    async with MessageBus() as bus:
        await bus.subscribe("ask.*", Collector())
        with pytest.raises(TimeoutError):
            await bus.request("ask.me", 1, timeout=0.5)
        await bus.publish_batch([Message("a", 1), Message("b", 2)])
    used = {name for span in spans.exporter.get_finished_spans() for name in span.attributes or {}}
    assert {name for name in used if name.startswith("messaging.")} <= known
    assert used - known <= {"amb.message.attempt", "amb.trace_id", "error.type"}


async def test_a_handlers_error_is_on_its_span_and_each_attempt_has_one(spans: Spans) -> None:
    bus = MessageBus(
        dead_letter_queue=DeadLetterQueue("dead"), retry_policy=RetryPolicy(max_retries=1, initial_delay=0.01)
    )
    async with bus:
        await bus.subscribe("t", Collector(ValueError("lost \ud800")))
        dead = Collector()
        await bus.subscribe("dead", dead)
        await bus.publish("t", 1)
        await dead.wait()
        tries = await spans.wait("process t", 2)
    sent = await spans.one("publish t")
    assert [attributes(span)["amb.message.attempt"] for span in tries] == [1, 2]
    for span in tries:
        assert is_child(span, sent)
        assert span.status.status_code is StatusCode.ERROR and attributes(span)["error.type"] == "ValueError"
        assert span.status.description == "lost \ufffd"
    assert is_child(await spans.one("publish dead"), sent)
    assert dead.messages[0].trace_id == trace_id(sent)


async def test_a_publish_that_fails_says_why(spans: Spans) -> None:
    async with MessageBus(InMemoryBroker(failure_rate=1.0)) as bus:
        with pytest.raises(Exception, match=r".") as caught:
            await bus.publish("t", 1)
    span = await spans.one("publish t")
    assert attributes(span)["error.type"] == f"{type(caught.value).__module__}.{type(caught.value).__qualname__}"


async def test_each_message_of_a_batch_is_created_and_the_batch_is_linked_to_all(spans: Spans) -> None:
    seen: list[list[int]] = []

    async def both(data: list[int]) -> None:
        seen.append(data)

    async with MessageBus() as bus:
        await bus.subscribe("t", both, ack_mode=AckMode.BATCH, batch_size=2)
        await bus.publish_batch([Message("t", 1), Message("t", 2)])
        handled = await spans.one("process t")
    created = [span.context.span_id for span in spans.all("create t")]
    sent = await spans.one("publish t")
    assert sent.kind is SpanKind.CLIENT and attributes(sent)["batch.message_count"] == 2
    for span in (sent, handled):
        assert [link.context.span_id for link in span.links] == created
    assert handled.parent is None and seen == [[1, 2]]


async def test_the_span_of_a_handler_is_current_in_it_also_in_a_thread(spans: Spans) -> None:
    here: list[str] = []

    def handler(data: int) -> None:
        here.append(format_trace_id(trace.get_current_span().get_span_context().trace_id))

    async with MessageBus() as bus:
        await bus.subscribe("t", handler)
        await bus.publish("t", 1)
        assert here == [trace_id(await spans.one("process t"))]
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("given", [TRACE, "custom-trace-id-from-upstream"])
async def test_a_trace_given_by_hand_is_kept_and_joined_where_it_can_be(spans: Spans, given: str) -> None:
    collector = Collector()
    async with MessageBus() as bus:

        async def onward(message: Message) -> None:
            await bus.publish("next", 1)

        await bus.subscribe("t", onward)
        await bus.subscribe("next", collector)
        with get_tracer("test").start_as_current_span("elsewhere") as elsewhere:
            await bus.publish("t", 1, trace_id=given)
        await collector.wait()
        ended = [await spans.one(name) for name in ("publish t", "process t", "publish next", "process next")]
    assert collector.messages[0].trace_id == given
    joined = given if given == TRACE else format_trace_id(elsewhere.get_span_context().trace_id)
    assert {trace_id(span) for span in ended} == {joined}
    assert {attributes(span)["amb.trace_id"] for span in ended} == {given}


async def test_a_foreign_traceparent_is_continued_and_a_malformed_one_ignored(spans: Spans) -> None:
    collector = Collector()
    async with MessageBus() as bus:
        await bus.subscribe("t", collector)
        for header in (FOREIGN, "00-nonsense-01"):
            await bus.publish("t", 1, headers={"traceparent": header})
        await collector.wait(2)
        first, second = await spans.wait("publish t", 2)
    assert trace_id(first) == TRACE == collector.messages[0].trace_id
    assert second.parent is None and collector.messages[1].trace_id == trace_id(second)


async def test_tracestate_travels_and_ends_with_its_trace(spans: Spans) -> None:
    collector = Collector()
    async with MessageBus() as bus:

        async def fork(message: Message) -> None:
            await bus.publish("same", 1)
            await bus.publish("other", 1, trace_id="ab" * 16)

        await bus.subscribe("t", fork)
        await bus.subscribe("same", collector)
        await bus.subscribe("other", collector)
        await bus.publish("t", 1, headers={"traceparent": FOREIGN, "tracestate": "vendor=1"})
        await collector.wait(2)
    states = {message.topic: message.headers.get("tracestate") for message in collector.messages}
    assert states == {"same": "vendor=1", "other": None}


async def test_the_trace_of_a_message_without_tracing_is_in_its_traceparent() -> None:
    collector = Collector()
    async with MessageBus() as bus:
        await bus.subscribe("t", collector)
        await bus.publish("t", 1, headers={"traceparent": FOREIGN})
        await bus.publish("t", 1, headers={"traceparent": "00-nonsense-01"})
        await collector.wait(2)
    assert [message.trace_id for message in collector.messages] == [TRACE, None]


async def test_a_receive_lasts_from_when_it_was_asked_for(spans: Spans) -> None:
    async with MessageBus() as bus:
        begin = time.time_ns()
        await bus.subscribe("t", Collector())
        await bus.publish("t", 1)
        received, sent = await spans.one("receive t"), await spans.one("publish t")
    assert begin <= (received.start_time or 0) <= (received.end_time or 0)
    assert (sent.start_time or 0) <= (received.end_time or 0)


OFF = """
import anyio, sys
from amb_core import MessageBus
async def main():
    async with MessageBus() as bus:
        await bus.subscribe("t", print)
        await bus.publish("t", 1)
        assert bus.host.observer is None and bus.host.direct is not None
anyio.run(main)
unwanted = ("opentelemetry", "prometheus_client", "amb_core.observability")
print([name for name in sys.modules if name.startswith(unwanted)])
"""


def test_while_it_is_off_nothing_is_imported() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", OFF], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


async def test_while_it_is_off_a_message_passes_no_code_of_an_observer() -> None:
    entered = Counter[str]()

    def enter(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            entered[frame.f_code.co_filename.rpartition("/amb_core/")[2]] += 1

    async with MessageBus() as bus:
        collector = Collector()
        await bus.subscribe("t", collector)
        bus.responder("ask")(Collector())
        await bus.request("ask", 0)
        gc.collect()  # what other buses leave behind
        sys.setprofile(enter)
        try:
            await bus.publish("t", 1)
            await bus.publish_batch([Message("t", 2)])
            await bus.request("ask", 3)
            await collector.wait(2)
        finally:
            sys.setprofile(None)
    assert entered["_publish.py"] > 3 and entered["_consumer.py"] > 3 and entered["_settling.py"] > 0
    assert [file for file in entered if file.startswith(("_observe", "observability/"))] == []


ABSENT = """
import sys
sys.modules["opentelemetry"] = None
import anyio
from amb_core import MessageBus, get_tracer, initialize_tracing
initialize_tracing("my-agent-system")
tracer = get_tracer("agent-workflow")
@tracer.start_as_current_span("decorated")
def step(): return 1
async def main():
    async with MessageBus() as bus:
        with tracer.start_as_current_span("agent-thinking") as span:
            span.set_attribute("a", 1)
            await bus.publish("agent.thoughts", {"thought": "Processing data"})
        with tracer.start_span("b"):
            assert step() == 1
        assert bus.host.observer is None
anyio.run(main)
"""


def test_without_opentelemetry_the_same_program_runs_and_a_warning_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", ABSENT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "pip install 'amb-core[tracing]'" in done.stderr
