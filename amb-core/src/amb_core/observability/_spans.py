"""The spans of a bus, by OpenTelemetry's semantic conventions for messaging; and contexts in message headers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags, Tracer
from opentelemetry.util.types import AttributeValue

from .._message import CORRELATION, ID, TRACE_ID, TRACESTATE
from .._texts import describe, header
from ..broker import Incoming, Outgoing, Settlement, Source, is_inbox
from ..topics import is_pattern

#: A trace id given by hand that can be OpenTelemetry's; any other text only travels along.
_TRACE = re.compile(r"(?!0{32})[0-9a-f]{32}")
_NOWHERE = Context()
_Attributes = dict[str, AttributeValue]


class Spans:
    """Makes the spans of one bus. Implements `Observer`."""

    def __init__(self, tracer: Tracer, system: str) -> None:
        self._tracer, self._system = tracer, system

    @contextmanager
    def sending(self, batch: Sequence[Outgoing]) -> Iterator[None]:
        """One message: a span whose context it carries. Several: each carries that of its creation, to which the span
        of sending them has links."""
        topics, ids = [o.topic for o in batch], [o.headers.get(ID, "") for o in batch]
        attributes = self._attributes("publish", "send", topics, ids)
        if len(batch) == 1:
            [outgoing] = batch
            attributes |= _details(outgoing)
            parent = _parent(outgoing.headers)
            span = self._tracer.start_span(_name("publish", topics), parent, SpanKind.PRODUCER, attributes)
            _inject(span, outgoing)
        else:
            links = [Link(self._create(outgoing)) for outgoing in batch]
            span = self._tracer.start_span(_name("publish", topics), None, SpanKind.CLIENT, attributes, links)
        with _until_end(span):
            yield

    def _create(self, outgoing: Outgoing) -> SpanContext:
        attributes = self._attributes("create", "create", [outgoing.topic], [outgoing.headers.get(ID, "")])
        span = self._tracer.start_span(
            _name("create", [outgoing.topic]),
            _parent(outgoing.headers),
            SpanKind.PRODUCER,
            attributes | _details(outgoing),
        )
        _inject(span, outgoing)
        span.end()
        return span.get_span_context()

    def received(self, source: Source, batch: Sequence[Incoming], began: int) -> None:
        """A span over the time that the broker took."""
        self._consuming("receive", "receive", SpanKind.CLIENT, source, batch, began=began).end()

    @contextmanager
    def handling(self, source: Source, batch: Sequence[Incoming]) -> Iterator[None]:
        """A span that is the current one of the handler."""
        around = _around(batch)
        span = self._consuming("process", "process", SpanKind.CONSUMER, source, batch, parent=around)
        context.attach(trace.set_span_in_context(span, around))  # the context is this call's own and ends with it
        with _until_end(span):
            yield

    @contextmanager
    def settling(self, source: Source, batch: Sequence[Incoming], told: Sequence[Settlement]) -> Iterator[None]:
        """A span named for the verdict, if it is the same for all."""
        verdicts = {settlement.verdict for settlement in told}
        verdict = verdicts.pop() if len(verdicts) == 1 else "settle"
        with _until_end(self._consuming(verdict, "settle", SpanKind.CLIENT, source, batch)):
            yield

    def _consuming(
        self,
        name: str,
        kind: str,
        role: SpanKind,
        source: Source,
        batch: Sequence[Incoming],
        *,
        parent: Context | None = None,
        began: int | None = None,
    ) -> Span:
        """A span about messages that came: it has links to all of them, and one alone is its parent too."""
        attributes = self._attributes(
            name, kind, [i.topic for i in batch], [i.headers.get(ID) or i.position or "" for i in batch]
        )
        if len(batch) == 1:
            attributes |= _details(batch[0]) | {"amb.message.attempt": batch[0].attempt}
        if source.group is not None:
            attributes["messaging.consumer.group.name"] = source.group
        if is_pattern(source.pattern):
            attributes["messaging.destination.template"] = source.pattern
        parent = _around(batch) if parent is None else parent
        carried = [parent] if len(batch) == 1 else [_carried(incoming.headers) for incoming in batch]
        links = [Link(origin) for each in carried if (origin := _origin(each)).is_valid]
        return self._tracer.start_span(_name(name, [source.pattern]), parent, role, attributes, links, began)

    def _attributes(self, name: str, kind: str, topics: Sequence[str], ids: Sequence[str]) -> _Attributes:
        attributes: _Attributes = {
            "messaging.system": self._system,
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
        }
        if len(set(topics)) == 1:
            attributes["messaging.destination.name"] = topics[0]
            if is_inbox(topics[0]):
                attributes["messaging.destination.temporary"] = True
        if len(ids) > 1:
            attributes["messaging.batch.message_count"] = len(ids)
        elif ids[0]:
            attributes["messaging.message.id"] = ids[0]
        return attributes


def _name(operation: str, topics: Sequence[str]) -> str:
    """``operation destination``, of which there are not too many: a reply address is nobody's name."""
    if len(set(topics)) > 1:
        return operation
    return f"{operation} {'(temporary)' if is_inbox(topics[0]) else topics[0]}"


def _details(message: Outgoing | Incoming) -> _Attributes:
    attributes: _Attributes = {"messaging.message.body.size": len(message.body)}
    if CORRELATION in message.headers:
        attributes["messaging.message.conversation_id"] = message.headers[CORRELATION]
    if TRACE_ID in message.headers:
        attributes["amb.trace_id"] = message.headers[TRACE_ID]
    return attributes


def _parent(headers: Mapping[str, str]) -> Context:
    """Of what a message is a part: of the trace given by hand, else of the current span, else of the message that it
    answers or was."""
    current = trace.get_current_span().get_span_context()
    wanted = headers.get(TRACE_ID, "")
    elsewhere = _TRACE.fullmatch(wanted) is not None and f"{current.trace_id:032x}" != wanted
    return context.get_current() if current.is_valid and not elsewhere else _carried(headers)


def _around(batch: Sequence[Incoming]) -> Context:
    """What a span about these messages is a part of: several have no common parent."""
    return _carried(batch[0].headers) if len(batch) == 1 else _NOWHERE


def _origin(context: Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()


def _carried(headers: Mapping[str, str]) -> Context:
    """The context in a message's headers. Of a trace that is only given by hand the first span is not known: all that
    say so share one."""
    found = propagate.extract(headers, _NOWHERE)
    wanted = headers.get(TRACE_ID, "")
    if not _TRACE.fullmatch(wanted) or f"{_origin(found).trace_id:032x}" == wanted:
        return found
    unseen = SpanContext(int(wanted, 16), int(wanted[16:], 16) or 1, True, TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(unseen), found)


def _inject(span: Span, outgoing: Outgoing) -> None:
    outgoing.headers.pop(TRACESTATE, None)  # of the message that is answered, perhaps of another trace
    propagate.inject(outgoing.headers, trace.set_span_in_context(span))


@contextmanager
def _until_end(span: Span) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        span.set_attribute("error.type", name)
        span.set_status(StatusCode.ERROR, header(describe(error)))  # an exporter must be able to send it
        raise
    finally:
        span.end()
