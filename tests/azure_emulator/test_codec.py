"""The codec against the bytes of the standard, and what comes in that is no AMQP."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.servers.servicebus.codec import (
    CodecError,
    Described,
    Int,
    Raw,
    Symbol,
    Timestamp,
    Ubyte,
    Uint,
    Ulong,
    Ushort,
    decode,
    decode_raw_map,
    encode,
    longs,
    strings,
    timestamps,
)
from tests.servers.servicebus.frames import Close, Transfer, decode_frame, encode_frame
from tests.servers.servicebus.message import BATCH, compose, parse, parse_all

_LONG = 2**63 - 1
#: From part 1 of the standard, sections 1.2 and 1.6.
_WRITTEN = [
    (None, "40"), (True, "41"), (False, "42"), (Ubyte(7), "5007"), (Ushort(258), "600102"), (Uint(0), "43"),
    (Uint(9), "5209"), (Uint(256), "7000000100"), (Ulong(0), "44"), (Ulong(16), "5310"),
    (Ulong(256), "800000000000000100"), (Int(-2), "71fffffffe"), (-1, "81ffffffffffffffff"),
    (1.5, "823ff8000000000000"), (Timestamp(1), "830000000000000001"), (b"ab", "a0026162"), ("é", "a102c3a9"),
    (Symbol("a"), "a30161"), (UUID(int=1), "98" + "00" * 15 + "01"), ([], "45"), ([None, True], "c003024041"),
    ({Symbol("a"): "b"}, "c10702a30161a10162"), (Described(Ulong(36), []), "00532445"), (Raw(b"\x41"), "41"),
]  # fmt: skip
_READ = [
    ("5601", True), ("5600", False), ("51ff", -1), ("54ff", -1), ("55ff", -1), ("61ffff", -1), ("723fc00000", 1.5),
    ("d0000000060000000240" + "41", [None, True]), ("e0040250" + "0102", [1, 2]), ("e003005000", []),
    ("f0000000060000000152" + "09", [9]), ("e00601005324" + "5207", [7]), ("b000000002" + "6162", b"ab"),
    ("730000" + "0041", b"\0\0\0A"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "written"), _WRITTEN)
def test_a_value_is_written_as_the_standard_says_and_read_back(value: object, written: str) -> None:
    assert encode(value).hex() == written
    expected = True if isinstance(value, Raw) else value
    assert decode(bytes.fromhex(written)) == (expected, len(written) // 2)


@pytest.mark.parametrize(("written", "value"), _READ)
def test_other_forms_of_a_value_are_read(written: str, value: object) -> None:
    assert decode(bytes.fromhex(written)) == (value, len(written) // 2)


def test_arrays_are_read_back() -> None:
    assert decode(encode(longs([1, -_LONG])))[0] == [1, -_LONG]
    assert decode(encode(timestamps([1])))[0] == [1]
    assert decode(encode(strings(["a", "b" * 300])))[0] == ["a", "b" * 300]


@pytest.mark.parametrize(
    "value", ["é" * 200, b"x" * 300, [None] * 300, ["x" * 200] * 2, {str(n): n for n in range(200)}]
)
def test_what_is_long_is_written_in_the_long_form(value: object) -> None:
    assert decode(encode(value)) == (value, len(encode(value)))


_plain = st.none() | st.booleans() | st.integers(-_LONG, _LONG) | st.floats(allow_nan=False) | st.text() | st.binary()
_values = st.recursive(_plain, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=30)


@settings(max_examples=60)
@given(_values)
def test_what_is_written_is_read_back(value: object) -> None:
    assert decode(encode(value)) == (value, len(encode(value)))


@given(st.binary(max_size=60))
def test_bytes_that_are_no_value_are_refused_and_nothing_else_happens(data: bytes) -> None:
    try:
        decode(data)
    except CodecError:
        return


@pytest.mark.parametrize("written", ["", "a0ff00", "a102c328", "13", "c0ff", "980000", "e0040213" + "0102"])
def test_what_is_cut_off_or_unknown_is_refused(written: str) -> None:
    with pytest.raises(CodecError):
        decode(bytes.fromhex(written))


def test_a_type_that_amqp_has_not_is_refused() -> None:
    with pytest.raises(CodecError, match="set"):
        encode(set())


def test_frames_are_read_back_with_their_payload() -> None:
    transfer = Transfer(1, 2, b"tag", 0, False, True)
    frame = encode_frame(3, transfer, b"payload")
    assert int.from_bytes(frame[:4], "big") == len(frame)
    assert decode_frame(frame) == (3, transfer, b"payload")
    assert decode_frame(bytes.fromhex("0000000802000000")) == (0, None, b"")
    assert decode_frame(encode_frame(0, Close())) == (0, Close(), b"")


def test_a_message_is_passed_on_as_it_came() -> None:
    application = b"\x00\x53\x74" + encode({"half": Raw(b"\x72\x3f\xc0\x00\x00")})
    properties = b"\x00\x53\x73" + encode([UUID(int=5), None, "to"])
    data = b"\x00\x53\x75" + encode(b"body")
    header = b"\x00\x53\x70" + encode([True, Ubyte(9), Uint(1500)])
    content = parse(header + properties + application + data)
    assert (content.message_id, content.ttl, content.priority) == (str(UUID(int=5)), 1.5, 9)
    again = compose(content, 2, {"x-opt-sequence-number": 1}, {"DeadLetterReason": "r"})
    assert properties in again and again.endswith(data) and b"\x72\x3f\xc0\x00\x00" in again
    assert parse(again).application_value("DeadLetterReason") == "r"
    assert decode_raw_map(encode({"a": 1})) == {"a": encode(1)}


def test_a_batch_is_messages_in_data_sections() -> None:
    one = b"\x00\x53\x75" + encode(b"x")
    assert [each.body for each in parse_all(BATCH, (b"\x00\x53\x75" + encode(one)) * 2)] == [one, one]
    assert [each.body for each in parse_all(0, one)] == [one]
