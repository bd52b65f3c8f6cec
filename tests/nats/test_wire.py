"""Topics as subjects, headers as native headers, and what native errors become."""

from __future__ import annotations

import pytest
from amb_core.broker import Outgoing
from amb_core.errors import (
    AccessDenied,
    AmbError,
    AuthenticationError,
    BackpressureError,
    ConfigurationError,
    ConnectionLost,
    MessageTooLarge,
    NotFound,
    PublishUnknown,
    Unavailable,
)
from amb_core.topics import compile_pattern
from amb_nats._errors import api_error, translate
from amb_nats._wire import Names, durable, from_headers, message_id, to_headers
from hypothesis import given
from hypothesis import strategies as st
from nats import errors as native
from nats.aio.client import Client

_text = st.text(st.characters(codec="utf-8"))
_words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(
    lambda word: word.isprintable() and not set(word) & set(".*# ")
)
_topics = st.lists(_words, min_size=1, max_size=5).map(".".join)


@given(_topics, st.sampled_from(["", "amb", "acme.prod"]))
def test_a_topic_comes_back_out_of_its_subject(topic: str, prefix: str) -> None:
    names = Names(prefix, "_INBOX")
    subject = names.subject(topic)
    assert names.topic(subject) == topic
    assert ">" not in subject and not subject.startswith(("$", "_INBOX."))


def test_a_plain_topic_is_its_own_subject() -> None:
    assert Names("", "_INBOX").subject("orders.new-1.ä_") == "orders.new-1.ä_"
    assert Names("amb", "_INBOX").subject("orders.new") == "amb.orders.new"
    assert Names("amb", "_INBOX").subject("_amb.inbox.x") == "_amb.inbox.x"


def test_what_belongs_to_nats_is_no_topic() -> None:
    names = Names("", "_MINE")
    assert [names.topic(one) for one in ("$SYS.x", "_MINE.abc", "a.b")] == [None, None, "a.b"]


@pytest.mark.parametrize(
    ("pattern", "filters"),
    [
        ("a.b", ["a.b"]),
        ("a.*", ["a.*"]),
        ("a.#", ["a", "a.>"]),
        ("a.#.#", ["a", "a.>"]),
        ("a.#.b", ["a.>"]),
        ("a.*.#.*", ["a.*.>"]),
        ("#", [">"]),
        ("#.a", [">"]),
        ("*.#", ["*", "*.>"]),
    ],
)
def test_patterns_become_subjects_that_do_not_overlap(pattern: str, filters: list[str]) -> None:
    assert Names("", "_INBOX").filters(pattern) == filters


@given(st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=5), st.lists(st.sampled_from("ab")))
def test_the_subjects_of_a_pattern_match_all_that_it_matches(pattern: list[str], topic: list[str]) -> None:
    if topic and compile_pattern(".".join(pattern))(".".join(topic)):
        assert sum(_matches(one.split("."), topic) for one in Names("", "_INBOX").filters(".".join(pattern))) == 1


def _matches(subject: list[str], topic: list[str]) -> bool:
    if subject[-1] == ">":
        return len(topic) >= len(subject) and _matches(subject[:-1], topic[: len(subject) - 1]) if subject[1:] else True
    return len(topic) == len(subject) and all(s in ("*", t) for s, t in zip(subject, topic, strict=True))


def test_equal_groups_on_different_patterns_are_different_consumers() -> None:
    assert durable("g", "a.b") != durable("g", "a.c") != durable("a.g", "c")
    assert not set(durable("a b.*>/\\ü", "x")) & set(" .*>/\\ü")


@given(st.dictionaries(_text, _text, max_size=5), st.none() | _text)
def test_headers_and_key_come_back_exactly(headers: dict[str, str], key: str | None) -> None:
    headers = {name: value for name, value in headers.items() if not name.startswith("amb-")} | {"amb-id": "1"}
    block = to_headers(Outgoing("t", b"", headers, key))
    assert block.isascii() and block.startswith(b"NATS/1.0\r\n") and block.endswith(b"\r\n\r\n")
    assert from_headers(_read(block)) == (headers, key)


def _read(block: bytes) -> dict[str, str]:
    """As nats-py reads it."""
    return Client._parse_header_lines(block.removeprefix(b"NATS/1.0\r\n"))


def test_what_a_server_would_obey_stays_a_header() -> None:
    headers = {"amb-id": "1", "Nats-TTL": "1s", "nats-rollup": "all"}
    wire = _read(to_headers(Outgoing("t", b"", headers)))
    assert set(wire) == {"amb-id", "amb-headers"}
    assert from_headers(wire) == (headers, None)


def test_a_foreign_message_keeps_its_headers() -> None:
    assert from_headers(None) == ({}, None)
    assert from_headers({"a": "1", "Nats-Msg-Id": "x"}) == ({"a": "1", "Nats-Msg-Id": "x"}, None)
    assert from_headers({"amb-headers": "{no json"}) == ({"amb-headers": "{no json"}, None)


def test_a_dead_letter_is_no_second_publish_of_its_original() -> None:
    def id(topic: str, **headers: str) -> str | None:
        return message_id(Outgoing(topic, b"", {name.replace("_", "-"): value for name, value in headers.items()}))

    assert id("t", amb_id="1") == id("t", amb_id="1") != id("u", amb_id="1")
    assert id("t", amb_id="1", amb_dead_topic="x") is id("t", amb_id="1", amb_for="g") is id("t") is None


_NATIVE: list[tuple[BaseException, type[AmbError]]] = [
    (native.ConnectionClosedError(), ConnectionLost),
    (native.StaleConnectionError(), ConnectionLost),
    (native.UnexpectedEOF(), ConnectionLost),
    (native.ConnectionDrainingError(), ConnectionLost),
    (native.AuthorizationError(), AuthenticationError),
    (native.Error("nats: 'Authorization Violation'"), AuthenticationError),
    (native.Error("nats: 'User Authentication Expired'"), AuthenticationError),
    (native.Error('nats: permissions violation for publish to "x"'), AccessDenied),
    (native.MaxPayloadError(), MessageTooLarge),
    (native.Error("nats: 'Maximum Payload Violation'"), MessageTooLarge),
    (native.Error("nats: 'maximum connections exceeded'"), Unavailable),
    (native.SecureConnWantedError(), ConfigurationError),
    (native.TimeoutError(), Unavailable),
    (native.NoServersError(), Unavailable),
    (ConnectionRefusedError("no"), Unavailable),
    (TimeoutError(), Unavailable),
]


@pytest.mark.parametrize(("error", "kind"), _NATIVE, ids=lambda value: str(value) or type(value).__name__)
def test_native_errors_are_ours(error: BaseException, kind: type[AmbError]) -> None:
    ours = translate(error, "publish to 'x'")
    assert type(ours) is kind
    assert str(ours).startswith("publish to 'x': ") and ours.__cause__ is error


def test_a_link_that_breaks_after_writing_leaves_it_open() -> None:
    assert type(translate(native.ConnectionClosedError(), "x", unknown=True)) is PublishUnknown
    assert type(translate(native.AuthorizationError(), "x", unknown=True)) is AuthenticationError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 404, "err_code": 10059, "description": "stream not found"}, NotFound),
        ({"code": 503, "err_code": 10039, "description": "jetstream not enabled"}, ConfigurationError),
        ({"code": 503, "err_code": 10077, "description": "maximum messages exceeded"}, BackpressureError),
        ({"code": 400, "err_code": 10054, "description": "message size exceeds maximum"}, MessageTooLarge),
        ({"code": 400, "err_code": 99999, "description": "something new"}, ConfigurationError),
        ({"code": 503, "err_code": 10008, "description": "temporarily unavailable"}, Unavailable),
        ({"code": 500}, Unavailable),
    ],
)
def test_what_jetstream_answers_is_ours(error: dict[str, object], kind: type[AmbError]) -> None:
    assert type(api_error(error, "x")) is kind
