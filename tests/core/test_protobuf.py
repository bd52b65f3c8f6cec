"""Protocol Buffers: typed on both sides, the type travels, and what is not known or not valid is a dead letter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from amb_core import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    InMemoryBroker,
    JsonSerializer,
    Message,
    MessageBus,
    ProtobufSerializer,
    RemoteError,
)
from google.protobuf import wrappers_pb2

from tests.core._help import DLQ, Collector, dead_letters, eventually

PROTOS = Path(__file__).with_name("protos")
MEDIA = "application/protobuf"


@pytest.fixture(scope="module")
def serializer() -> ProtobufSerializer:
    return ProtobufSerializer(PROTOS, "AgentEvent")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module that protoc writes for users: here of a type that no other test knows."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "amb_generated.proto").write_text('syntax = "proto3"; package gen; message Ping { int32 n = 1; }')
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--python_out={folder}"]
    subprocess.run([*command, "amb_generated.proto"], check=True, cwd=folder)
    sys.path.insert(0, str(folder))
    try:
        import amb_generated_pb2  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(folder))
    return amb_generated_pb2  # type: ignore[no-any-return]


def taking(cls: Any, into: list[Any]) -> Callable[[Any], Any]:
    """A handler annotated with the class."""

    async def handler(payload: Any) -> None:
        into.append(payload)

    handler.__annotations__["payload"] = cls
    return handler


class TestTypes:
    def test_files_are_compiled_and_nothing_is_left_beside_them(self, serializer: ProtobufSerializer) -> None:
        before = sorted(PROTOS.rglob("*"))
        order: Any = serializer.message_type("shop.Order")
        line: Any = serializer.message_type("shop.Order.Line")
        assert order(id=1, lines=[line(item="tea", count=2)], by={"agent_id": "a"}).by.agent_id == "a"
        assert serializer.message_type("Order") is order
        assert sorted(PROTOS.rglob("*")) == before

    def test_one_file_is_enough(self) -> None:
        assert ProtobufSerializer(PROTOS / "agent_events.proto").message_type("AgentEvent")

    @pytest.mark.parametrize("path", ["nowhere", "nowhere.proto"])
    def test_a_path_without_files_is_refused(self, path: str) -> None:
        with pytest.raises(ConfigurationError, match=r"has no \.proto files"):
            ProtobufSerializer(PROTOS / path)

    def test_a_file_that_does_not_compile_is_refused_with_the_place(self, tmp_path: Path) -> None:
        (tmp_path / "bad.proto").write_text('syntax = "proto3"; message A { Missing b = 1; }')
        with pytest.raises(ConfigurationError, match=r'bad.proto:1:32: "Missing" is not defined'):
            ProtobufSerializer(tmp_path)

    def test_a_default_that_does_not_exist_is_refused_with_the_closest(self) -> None:
        with pytest.raises(ConfigurationError, match=r"'AgentEven' is known \(did you mean 'AgentEvent'\?\)"):
            ProtobufSerializer(PROTOS, "AgentEven")

    @pytest.mark.parametrize("options", [{"types": [int]}, {"default_message_type": 5}, {"max_length": 0}])
    def test_options_of_the_wrong_kind_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            ProtobufSerializer(**options)

    def test_an_imported_class_is_known_by_its_name(self, generated: ModuleType) -> None:
        plain = ProtobufSerializer()
        ping = plain.decoder(Any)(*plain.encode(generated.Ping(n=3)))
        assert isinstance(ping, generated.Ping) and ping.n == 3

    def test_a_default_may_be_named_before_it_is_imported(self, generated: ModuleType) -> None:
        assert isinstance(ProtobufSerializer(None, "gen.Ping").decoder(Any)(b"", MEDIA), generated.Ping)
        with pytest.raises(DecodeError, match=r"gen\.Pong"):
            ProtobufSerializer(None, "gen.Pong").decoder(Any)(b"", MEDIA)


class TestBytes:
    def test_the_type_travels_in_the_content_type(self, serializer: ProtobufSerializer) -> None:
        event = serializer.message_type("AgentEvent")(agent_id="a", metadata={"k": "v"})
        body, content_type = serializer.encode(event)
        assert (body, content_type) == (event.SerializeToString(), f"{MEDIA}; proto=AgentEvent")
        assert serializer.decoder(Any)(body, content_type) == event

    @pytest.mark.parametrize("form", ["; proto=shop.Order", ';proto="shop.Order"', "; v=1; messageType=shop.Order"])
    def test_the_spellings_of_others_are_read(self, form: str, serializer: ProtobufSerializer) -> None:
        assert serializer.decoder(Any)(b"", MEDIA + form) == serializer.message_type("Order")()

    def test_without_a_name_it_is_the_default_or_what_the_handler_takes(self, serializer: ProtobufSerializer) -> None:
        order = serializer.message_type("Order")
        assert serializer.decoder(Any)(b"", MEDIA) == serializer.message_type("AgentEvent")()
        assert serializer.decoder(order)(b"\x08\x05", MEDIA) == order(id=5)
        with pytest.raises(DecodeError, match="does not say which protobuf type it is"):
            ProtobufSerializer().decoder(Any)(b"", MEDIA)

    def test_a_dict_is_sent_as_the_default(self, serializer: ProtobufSerializer) -> None:
        body, content_type = serializer.encode({"agent_id": "a", "metadata": {"k": "v"}})
        event: Any = serializer.decoder(Any)(body, content_type)
        assert (event.agent_id, dict(event.metadata)) == ("a", {"k": "v"})

    @pytest.mark.parametrize("value", [None, True, 0, -(2**63), 1.5, "ü", b"\xff", ""])
    def test_plain_values_come_back_plain(self, value: object, serializer: ProtobufSerializer) -> None:
        body, content_type = serializer.encode(value)
        for kind in (Any, None if value is None else type(value)):
            again = serializer.decoder(kind)(body, content_type)
            assert again == value and type(again) is type(value)

    @pytest.mark.parametrize("value", [2**63, [1], {"no_such_field": 1}, {"agent_id": 1}, "\ud800", object(), {1: 2}])
    def test_what_has_no_form_is_refused(self, value: object, serializer: ProtobufSerializer) -> None:
        with pytest.raises(EncodeError, match=f"a {type(value).__name__} cannot be sent as protobuf"):
            serializer.encode(value)

    @pytest.mark.parametrize("kind", [dict, list[int], Path, int | str])
    def test_a_handler_that_takes_something_else_is_refused(self, kind: Any, serializer: ProtobufSerializer) -> None:
        with pytest.raises(TypeError, match="annotate the handler with a generated class"):
            serializer.decoder(kind)

    def test_another_type_than_the_annotated_one_is_not_taken_for_it(self, serializer: ProtobufSerializer) -> None:
        for kind in (serializer.message_type("Order"), str):
            with pytest.raises(DecodeError, match="the payload is a AgentEvent, not the expected"):
                serializer.decoder(kind)(b"", f"{MEDIA}; proto=AgentEvent")
        assert serializer.decoder(wrappers_pb2.StringValue)(*serializer.encode("x")) == wrappers_pb2.StringValue(
            value="x"
        )


class TestLimits:
    def test_a_body_longer_than_the_limit_is_neither_sent_nor_read(self, serializer: ProtobufSerializer) -> None:
        short = ProtobufSerializer(max_length=10)
        with pytest.raises(EncodeError, match="has 12 bytes, max_length is 10"):
            short.encode("0123456789")
        with pytest.raises(DecodeError, match="has 12 bytes, max_length is 10"):
            short.decoder(Any)(*serializer.encode("0123456789"))

    def test_a_hundred_levels_are_read_and_more_are_refused(self, serializer: ProtobufSerializer) -> None:
        decode = serializer.decoder(serializer.message_type("Order"))

        def nested(levels: int) -> bytes:
            body = b""
            for _ in range(levels):
                body = b"\x2a" + _varint(len(body)) + body
            return body

        decode(nested(99), MEDIA)
        for levels in (101, 100_000):
            with pytest.raises(DecodeError, match="not valid protobuf"):
                decode(nested(levels), MEDIA)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.anyio
class TestOnABus:
    async def test_an_object_is_published_and_received_by_annotation(self, serializer: ProtobufSerializer) -> None:
        cls, seen, collector = serializer.message_type("AgentEvent"), list[Any](), Collector()
        async with MessageBus(serializer=serializer) as bus:
            await bus.subscribe("events", taking(cls, seen))
            await bus.subscribe("events", collector)
            await bus.publish("events", cls(agent_id="a", timestamp=7))
            [message] = await collector.wait()
        assert seen == [message.data] == [cls(agent_id="a", timestamp=7)]

    async def test_an_unknown_type_and_damaged_bytes_are_dead_letters(self, generated: ModuleType) -> None:
        serializer, broker = ProtobufSerializer(PROTOS, "AgentEvent"), InMemoryBroker()
        stranger = _Foreign()
        async with MessageBus(broker, serializer=serializer, dead_letter_queue=DLQ) as bus:
            await bus.subscribe("events", Collector())
            await bus.subscribe("typed", taking(serializer.message_type("AgentEvent"), []))
            async with MessageBus(broker, serializer=stranger) as other:
                await other.publish("events", ("else.Where", b""))
                await other.publish("events", ("AgentEvent", b"\xff\xff"))
                await other.publish("typed", ("gen.Ping", b""))
            await eventually(lambda: bus.stats.dead_lettered == 3, "three dead letters")
            letters = await bus.dead_letters()
        assert {letter.info.reason for letter in letters} == {"undecodable"}
        assert sorted(letter.body for letter in letters) == [b"", b"", b"\xff\xff"]
        errors = " ".join(sorted(letter.info.error for letter in letters))
        assert "no protobuf type 'else.Where' is known" in errors
        assert "the payload is a gen.Ping, not the expected AgentEvent" in errors
        assert "not valid protobuf" in errors

    async def test_requests_are_answered_and_failures_are_told(self, serializer: ProtobufSerializer) -> None:
        async with MessageBus(serializer=serializer) as bus:

            @bus.responder("agents.count")
            async def count(request: Message) -> int:
                if not request.data.agent_id:
                    raise ValueError("who?")
                return len(request.data.agent_id)

            assert (await bus.request("agents.count", {"agent_id": "four"})).data == 4
            with pytest.raises(RemoteError, match=r"ValueError: who\?"):
                await bus.request("agents.count", {})

    async def test_mixed_traffic_is_understood_by_buses_of_either_kind(self, generated: ModuleType) -> None:
        broker, seen = InMemoryBroker(), list[Any]()
        async with (
            MessageBus(broker) as json,
            MessageBus(broker, serializer="protobuf", dead_letter_queue=DLQ) as proto,
        ):
            at_json, at_proto, letters = Collector(), Collector(), await dead_letters(proto)
            await json.subscribe("mixed", at_json)
            await proto.subscribe("mixed", at_proto)
            await proto.subscribe("mixed", taking(generated.Ping, seen))
            await json.publish("mixed", {"by": "json"})
            await proto.publish("mixed", generated.Ping(n=1))
            for collector in (at_json, at_proto):
                await collector.wait(2)
                assert collector.data == [{"by": "json"}, generated.Ping(n=1)]
            [letter] = await letters.wait()
        assert seen == [generated.Ping(n=1)]
        assert letter.dead is not None and "not what the handler takes" in letter.dead.error


class _Foreign:
    """Sends bytes under a type's name."""

    name, content_type = "foreign", MEDIA

    def encode(self, value: Any) -> tuple[bytes, str]:
        return value[1], f"{MEDIA}; proto={value[0]}"

    def decoder(self, type: Any) -> Any:
        return JsonSerializer().decoder(type)


class TestWithoutTheExtra:
    """In a fresh interpreter, where nothing is imported yet."""

    def run(self, code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def test_naming_it_imports_nothing(self) -> None:
        code = "import sys; from amb_core import ProtobufSerializer; print('google.protobuf' in sys.modules)"
        assert self.run(code) == "False"

    @pytest.mark.parametrize(
        "use", ["ProtobufSerializer()", "MessageBus(serializer='protobuf')", "MessageBus().codec.decoder(object)(m)"]
    )
    def test_what_needs_it_says_how_to_get_it(self, use: str) -> None:
        code = (
            "import sys; sys.modules['google.protobuf'] = None\n"
            "from amb_core import MessageBus, ProtobufSerializer\n"
            "from amb_core.broker import Incoming\n"
            "m = Incoming('t', b'', {'content-type': 'application/protobuf; proto=A'}, 1)\n"
            f"try: {use}\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        assert "pip install 'amb-core[protobuf]'" in self.run(code)
        assert self.run(code).startswith(("PluginError", "DecodeError"))
