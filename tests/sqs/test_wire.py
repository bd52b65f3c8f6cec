"""Names of queues and bodies of messages: reversible, within SQS's limits, readable by others."""

from __future__ import annotations

import json
import re

import pytest
from amb_core.broker import Outgoing
from amb_sqs._names import Names, escape, pattern_tags, stand_in, tagged_pattern, unescape
from amb_sqs._wire import attributes, from_body, to_body
from hypothesis import given
from hypothesis import strategies as st

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
NAMES = Names("amb-", fifo=False)


@pytest.mark.parametrize(
    ("topic", "escaped"),
    [
        ("orders.created", "orders_created"),
        ("code-review.a_b", "code--review_a-5Fb"),
        ("a-.b", "a--_b"),
        ("agents.#", "agents_-23"),
        ("ü", "-C3-BC"),
    ],
)
def test_topics_are_readable_in_names(topic: str, escaped: str) -> None:
    assert escape(topic) == escaped
    assert unescape(escaped) == topic


@given(TEXTS, TEXTS)
def test_names_fit_and_tell_the_pattern(pattern: str, group: str) -> None:
    for fifo in (False, True):
        names = Names("amb-", fifo)
        for name in (names.group(pattern, group), names.alone(pattern, group)):
            assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}|[A-Za-z0-9_-]{1,75}\.fifo", name)
            assert names.pattern(name) in (pattern, "")
            assert names.pattern(name) == pattern or len(escape(pattern)) + len(escape(group)) > 20
    assert names.is_alone(names.alone(pattern, group)) and not names.is_alone(names.group(pattern, group))


@given(TEXTS, TEXTS)
def test_different_groups_have_different_queues(pattern: str, group: str) -> None:
    made = {NAMES.group(pattern, group), NAMES.group(group, pattern), NAMES.alone(pattern, group), NAMES.inbox(pattern)}
    assert len(made) == (4 if pattern != group else 3)


@given(st.text(st.sampled_from("ab-_.xXhi0123456789ABCDEF"), max_size=30))
def test_no_foreign_name_is_taken_for_a_pattern_by_chance(name: str) -> None:
    pattern = NAMES.pattern(f"amb-{name}")
    if pattern:
        assert name.startswith(escape(pattern) + "-_")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255))
def test_tags_tell_what_a_name_cannot(pattern: str) -> None:
    tags = pattern_tags(pattern)
    assert tagged_pattern(tags | {"other": "tag"}) == pattern
    assert all(len(value) <= 256 and re.fullmatch(r"[\w+=.:/@-]*", value) for value in tags.values())


@given(st.binary(max_size=200), st.dictionaries(TEXTS, TEXTS, max_size=3), st.none() | TEXTS)
def test_messages_come_back_as_they_were(body: bytes, headers: dict[str, str], key: str | None) -> None:
    text = to_body(Outgoing("a.b", body, headers, key), attempts=2, not_before=1.5)
    assert not re.search("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    content = from_body(text)
    assert (content.topic, content.body, content.headers, content.key) == ("a.b", body, headers, key)
    assert (content.attempts, content.not_before) == (2, 1.5)


@given(st.recursive(st.none() | st.integers() | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
def test_json_is_a_part_of_the_envelope(value: object) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    text = to_body(Outgoing("a.b", body, {}))
    assert from_body(text).body == body
    envelope = json.loads(text)
    if not re.search("[\ufffe\uffff]", body.decode()):
        assert envelope == {"amb": 1, "topic": "a.b", "data": value}


@pytest.mark.parametrize(
    "body", [b" 1", b"1 ", b'{"a":1}x', b"", b"\xff", b'"\xff"', "\uffff".encode(), b'"\x01"', b"NaN"]
)
def test_what_is_no_plain_json_is_base64(body: bytes) -> None:
    text = to_body(Outgoing("a.b", body, {}))
    assert "base64" in json.loads(text)
    assert from_body(text).body == body


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "1",
        "{}",
        '{"amb":1}',
        '{"amb":2,"topic":"a"}',
        '{"amb":"1","topic":"a"}',
        '{"amb":1,"topic":"a","base64":"?"}',
    ],
)
def test_everything_else_is_a_foreign_message(text: str) -> None:
    content = from_body(text)
    assert (content.topic, content.body, content.headers) == (None, text.encode(), {})


@pytest.mark.parametrize(
    ("pattern", "topic"), [("a.b", "a.b"), ("a.*.c", "a.foreign.c"), ("a.#", "a"), ("#", "foreign")]
)
def test_a_foreign_message_gets_a_topic_that_matches(pattern: str, topic: str) -> None:
    assert stand_in(pattern) == topic


def test_the_trace_is_repeated_where_others_look_unless_sqs_would_refuse_it() -> None:
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=1"}
    assert attributes(Outgoing("t", b"1", trace | {"tenant": "acme"})) == trace
    refused = [{"tracestate": ""}, {"traceparent": "\x00"}, {"tracestate": "a=" + "1" * 512}]
    assert [attributes(Outgoing("t", b"1", headers)) for headers in refused] == [{}, {}, {}]
