"""Names, headers, progress and dealing: pure functions and bookkeeping, without a server."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from amb_core.broker import Incoming, Outgoing
from amb_kafka._assign import Assignor
from amb_kafka._holds import Held
from amb_kafka._progress import Progress
from amb_kafka._wire import Entry, Names, is_name, later, noted, read, write
from hypothesis import given
from hypothesis import strategies as st

PLAIN = Names({})
FAMILY = Names({"agents.#": "agents", "audit.log": "audit"})
_WORD = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters=".*#"), min_size=1, max_size=12)


@given(st.lists(_WORD, min_size=1, max_size=8).map(".".join))
def test_every_topic_has_a_name_that_kafka_takes_and_comes_back(topic: str) -> None:
    name = PLAIN.name(topic)
    assert is_name(name) or name.startswith("_")
    key, headers = write(Outgoing(topic, b"", {}), PLAIN.is_shared(name))
    assert read(PLAIN, name, key, headers).topic == topic


def test_a_plain_topic_is_its_own_name() -> None:
    assert PLAIN.name("orders.new-1_x") == "orders.new-1_x"
    assert PLAIN.name("orders.größe") == "orders.gr_-C3_-B6_-C3_-9Fe"


def test_two_topics_never_share_a_name() -> None:
    topics = ["a b", "a_b", "a-b", "a_-b", "a_-20b", "a\u00a0b", "A B".lower()]
    assert len({PLAIN.name(topic) for topic in set(topics)}) == len(set(topics))


def test_a_topic_that_is_too_long_travels_in_a_header() -> None:
    topic = "ä" * 120
    name = PLAIN.name(topic)
    assert len(name) < 249
    key, headers = write(Outgoing(topic, b"", {}), PLAIN.is_shared(name))
    assert read(PLAIN, name, key, headers).topic == topic


def test_a_message_is_its_bytes_and_its_headers() -> None:
    key, headers = write(Outgoing("a.b", b"{}", {"amb-id": "1", "x": "ü"}, key="k"), False)
    assert key == b"k"
    assert headers == [("amb-id", b"1"), ("x", "ü".encode())]
    entry = read(PLAIN, "a.b", key, headers)
    assert entry == Entry("a.b", {"amb-id": "1", "x": "ü"}, "k")


def test_a_family_keeps_a_topic_together_and_says_which_it_is() -> None:
    key, headers = write(Outgoing("agents.seven", b"", {}), FAMILY.is_shared("agents"))
    assert key == b"agents.seven"
    entry = read(FAMILY, "agents", key, headers)
    assert (entry.topic, entry.key) == ("agents.seven", None)


def test_a_key_in_a_family_stays_a_key() -> None:
    key, headers = write(Outgoing("agents.seven", b"", {}, key="order-1"), True)
    assert read(FAMILY, "agents", key, headers).key == "order-1" and key == b"order-1"


@pytest.mark.parametrize(
    ("name", "key", "topic"),
    [
        ("agents", b"agents.eight", "agents.eight"),
        ("agents", b"something else", "agents"),
        ("agents", None, "agents"),
        ("audit", None, "audit.log"),
        ("other.topic", b"k", "other.topic"),
    ],
)
def test_a_foreign_record_has_a_topic(name: str, key: bytes | None, topic: str) -> None:
    assert read(FAMILY, name, key, []).topic == topic


def test_a_foreign_record_may_hold_anything() -> None:
    entry = read(PLAIN, "a", b"\xff", [("h", b"\xff"), ("none", None)])  # type: ignore[list-item]
    assert entry.headers == {"h": "\ufffd"}
    assert entry.key == "\ufffd"


def test_a_pattern_reads_the_topics_it_matches_and_the_families() -> None:
    known = ["orders.new", "orders.old", "users.new", "agents", "_amb.inbox", "_amb.retry.x", "__consumer_offsets"]
    assert PLAIN.read_by("orders.*", known) == {"orders.new", "orders.old"}
    assert FAMILY.read_by("*.new", known) == {"orders.new", "users.new", "agents"}
    assert PLAIN.read_by("#", known) == {"orders.new", "orders.old", "users.new", "agents"}


def test_a_later_copy_is_the_original_with_another_attempt() -> None:
    _, headers = write(Outgoing("a.b", b"", {"x": "y"}, not_before=5.0), True)
    entry = read(PLAIN, "_amb.retry.g", b"k", later(headers, "a.b", 7.5, 3, "a.b:0:12"))
    assert (entry.topic, entry.headers, entry.due, entry.attempt) == ("a.b", {"x": "y"}, 7.5, 3)
    assert entry.position == "a.b:0:12"


# --- progress


def test_what_is_committed_ends_before_the_first_that_is_not_settled() -> None:
    progress = Progress(10, "")
    assert all(progress.take(offset) for offset in range(10, 15))
    for done in (10, 12, 14):
        progress.settle(done)
    offset, metadata = progress.commit()
    assert offset == 11
    after = Progress(offset, metadata)
    assert [number for number in range(11, 16) if after.take(number)] == [11, 13, 15]


def test_nothing_is_left_when_all_is_settled() -> None:
    progress = Progress(0, "")
    progress.take(0)
    progress.settle(0)
    assert progress.commit() == (1, "")


def test_the_gaps_that_nobody_has_read_again_stay() -> None:
    progress = Progress(5, _gaps(5, settled=(6, 7), until=9))
    assert progress.take(5)
    progress.settle(5)
    offset, metadata = progress.commit()
    assert offset == 8
    assert Progress(offset, metadata).take(8)


def _gaps(first: int, settled: tuple[int, ...], until: int) -> str:
    progress = Progress(first, "")
    for offset in range(first, until):
        progress.take(offset)
    for offset in settled:
        progress.settle(offset)
    return progress.commit()[1]


def test_metadata_stays_below_what_kafka_takes() -> None:
    progress = Progress(0, "")
    for offset in range(20_000):
        progress.take(offset)
    for offset in range(1, 20_000, 2):
        progress.settle(offset)
    offset, metadata = progress.commit()
    assert offset == 0
    assert len(metadata) <= 4096
    after = Progress(0, metadata)
    again = {offset for offset in range(20_000) if after.take(offset)}
    assert again >= set(range(0, 20_000, 2))
    assert not again & {1, 3, 5, 999}


@pytest.mark.parametrize("metadata", ["", "by another program", "amb1:zz:1", "amb1:5"])
def test_foreign_metadata_is_no_metadata(metadata: str) -> None:
    progress = Progress(3, metadata)
    assert not progress.take(2)
    assert progress.take(3)


@given(st.sets(st.integers(0, 60)))
def test_a_commit_never_passes_an_unsettled_record(done: set[int]) -> None:
    progress = Progress(0, "")
    for offset in range(61):
        progress.take(offset)
    for offset in done:
        progress.settle(offset)
    successor = Progress(*progress.commit())
    assert {offset for offset in range(61) if successor.take(offset)} == set(range(61)) - done


# --- dealing


class _Cluster(SimpleNamespace):
    def partitions_for_topic(self, topic: str) -> set[int] | None:
        count: int | None = getattr(self, topic, None)
        return None if count is None else set(range(count))


def _deal(busy: dict[str, bool], topics: tuple[str, ...] = ("t", "r"), **partitions: int) -> dict[str, int]:
    members = {name: Assignor(lambda now=now: now).metadata(topics) for name, now in busy.items()}  # type: ignore[misc]
    dealt = Assignor(lambda: False).assign(_Cluster(**partitions), members)
    every = [partition for hand in dealt.values() for partition in hand.partitions()]
    assert len(every) == len(set(every)) == sum(partitions.values())
    return {name: len(hand.partitions()) for name, hand in dealt.items()}


def test_partitions_are_dealt_evenly() -> None:
    assert _deal({"a": False, "b": False}, t=4, r=5) in ({"a": 4, "b": 5}, {"a": 5, "b": 4})
    assert _deal({"a": False, "b": False, "c": False}, t=2, r=1) == {"a": 1, "b": 1, "c": 1}


def test_a_busy_member_gets_nothing() -> None:
    assert _deal({"a": True, "b": False}, t=4, r=5) == {"a": 0, "b": 9}


def test_if_all_are_busy_nobody_is() -> None:
    assert sorted(_deal({"a": True, "b": True}, t=2, r=2).values()) == [2, 2]


def test_a_topic_that_is_not_there_yet_has_no_partitions() -> None:
    assert _deal({"a": False}, t=3) == {"a": 3}


def test_a_member_learns_how_many_there_are() -> None:
    one = Assignor(lambda: False)
    dealt = one.assign(_Cluster(t=1), {name: one.metadata(["t"]) for name in ("a", "b", "c")})
    one.on_assignment(dealt["b"])
    assert one.members == 3


# --- what is held


def _record(number: int) -> Incoming:
    return Incoming("a.b", b"", {}, number)


def _entry(headers: list[tuple[str, bytes]]) -> Entry:
    return read(PLAIN, "_amb.retry.g", None, headers)


def test_what_is_held_and_done_is_finished() -> None:
    held, copy, note = Held(), _record(1), _record(2)
    assert held.read(_entry(later([], "a.b", 0, 1, "p", "m/1")), copy) == ([], [])
    assert held
    assert held.read(_entry(noted("m/1", "done")), note) == ([], [copy, note])
    assert not held


def test_what_is_given_back_is_handed_out() -> None:
    held, copy, note = Held(), _record(1), _record(2)
    held.read(_entry(later([], "a.b", 0, 1, "p", "m/1")), copy)
    assert held.read(_entry(noted("m/1", "back")), note) == ([copy], [note])


def test_a_note_without_its_copy_is_finished() -> None:
    note = _record(1)
    assert Held().read(_entry(noted("m/1", "done")), note) == ([], [note])


def test_what_a_member_left_is_found_by_its_absence() -> None:
    held = Held()
    for id in ("gone/1", "here/1", "gone/2"):
        held.read(_entry(later([], "a.b", 0, 1, "p", id)), _record(hash(id)))
    assert held.without({"here"}) == ["gone/1", "gone/2"]
    assert len(held.give(["gone/1", "gone/2"])) == 2
    assert held.without({"here"}) == []
