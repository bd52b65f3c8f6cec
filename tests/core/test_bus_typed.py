"""Handlers that name a type get their payload as that type; what does not fit is a dead letter at once."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest
from amb_core import ConfigurationError, Message, MessageBus, RemoteError, Request

from tests.core._help import DLQ, Collector, dead_letters, eventually

pytestmark = pytest.mark.anyio


class StructTask(msgspec.Struct):
    name: str
    at: datetime
    count: int = 0


@dataclasses.dataclass
class DataclassTask:
    name: str
    at: datetime
    count: int = 0


class DictTask(TypedDict):
    name: str
    at: datetime


class ModelTask(pydantic.BaseModel):
    name: str
    at: datetime
    count: int = 0


WHEN = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
seen: list[Any] = []


async def takes_struct(task: StructTask) -> None:
    seen.append(task)


async def takes_dataclass(task: DataclassTask) -> None:
    seen.append(task)


async def takes_dict(task: DictTask) -> None:
    seen.append(task)


async def takes_model(task: ModelTask) -> None:
    seen.append(task)


HANDLERS: dict[str, tuple[Any, Any]] = {
    "Struct": (takes_struct, StructTask("n", WHEN)),
    "dataclass": (takes_dataclass, DataclassTask("n", WHEN)),
    "TypedDict": (takes_dict, {"name": "n", "at": WHEN}),
    "pydantic": (takes_model, ModelTask(name="n", at=WHEN)),
}


@pytest.fixture(autouse=True)
def _forget() -> None:
    seen.clear()


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("as_dict", [True, False], ids=["from a dict", "from an object"])
async def test_a_payload_is_decoded_into_the_annotated_type(kind: str, serializer: str, as_dict: bool) -> None:
    handler, expected = HANDLERS[kind]
    async with MessageBus(serializer=serializer) as bus:
        await bus.subscribe("t", handler)
        await bus.publish("t", {"name": "n", "at": WHEN} if as_dict else expected)
        await eventually(lambda: seen, "the payload")
    assert seen == [expected] and type(seen[0]) is type(expected)


@pytest.mark.parametrize("bad", [{"at": "2024-01-01"}, {"name": 1, "at": WHEN}, "text", None, [1], {"name": "n"}])
@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("serializer", ["json", "msgpack"])
async def test_a_mismatch_goes_to_the_dead_letters_without_a_retry(kind: str, bad: Any, serializer: str) -> None:
    async with MessageBus(dead_letter_queue=DLQ, serializer=serializer) as bus:
        dead = await dead_letters(bus)
        await bus.subscribe("t", HANDLERS[kind][0], group="g", retries=5, retry_delay=0)
        await bus.publish("t", bad)
        await bus.publish("t", {"name": "n", "at": WHEN})
        (letter,) = await dead.wait()
        await eventually(lambda: len(seen) == 1, "the good one")
    assert letter.dead is not None and (letter.dead.reason, letter.dead.attempts) == ("undecodable", 1)
    assert "DecodeError" in letter.dead.error and bus.stats.retried == 0


SCALARS: list[tuple[Any, Any, Any]] = [
    (int, 1, "x"),
    (str, "a", 1),
    (list[int], [1, 2], ["a"]),
    (dict[str, int], {"a": 1}, {"a": "b"}),
    (int | None, None, "x"),
    (Literal["a", "b"], "a", "c"),
    (Annotated[int, msgspec.Meta(ge=0)], 1, -1),
    (StructTask | None, None, {"name": 1}),
]


@pytest.mark.parametrize(("annotation", "good", "bad"), SCALARS)
async def test_built_in_and_composed_types_are_checked_too(annotation: Any, good: Any, bad: Any) -> None:
    async def handler(value: Any) -> None:
        seen.append(value)

    handler.__annotations__["value"] = annotation
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        dead = await dead_letters(bus)
        await bus.subscribe("t", handler)
        await bus.publish("t", bad)
        await bus.publish("t", good)
        await dead.wait()
        await eventually(lambda: seen == [good], "the good one")


async def test_a_batch_handler_may_name_the_type_of_its_items() -> None:
    async def handler(tasks: list[StructTask]) -> None:
        seen.extend(tasks)

    async with MessageBus() as bus:
        await bus.subscribe("t", handler, ack_mode="batch", batch_size=2, batch_timeout=0.2)
        await bus.publish("t", {"name": "a", "at": WHEN})
        await bus.publish("t", {"name": "b", "at": WHEN})
        await eventually(lambda: len(seen) == 2, "both")
    assert seen == [StructTask("a", WHEN), StructTask("b", WHEN)]


async def test_a_typed_responder_answers_and_a_mismatched_request_fails_at_once() -> None:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        dead = await dead_letters(bus)

        @bus.responder("r")
        async def answer(task: StructTask) -> str:
            return task.name

        assert (await bus.request("r", {"name": "n", "at": WHEN}, timeout=5)).data == "n"
        with pytest.raises(RemoteError, match=r"DecodeError.*`str`"):
            await bus.request("r", {"name": 1}, timeout=30)
        await dead.wait()


async def test_the_annotation_of_a_local_class_is_resolved_where_the_handler_uses_it() -> None:
    class Local(msgspec.Struct):
        n: int

    async def handler(local: Local) -> None:
        assert isinstance(local, Local)
        seen.append(local.n)

    async with MessageBus() as bus:
        await bus.subscribe("t", handler)
        await bus.publish("t", {"n": 1})
        await eventually(lambda: seen == [1], "the payload")


async def test_an_annotation_that_cannot_be_resolved_says_where_to_define_it() -> None:
    async def handler(task: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    with pytest.raises(ConfigurationError, match=r"'Missing'.*module level"):
        MessageBus().subscriber("t")(handler)


async def test_a_type_that_nothing_can_be_decoded_into_is_refused_when_subscribing() -> None:
    class Plain:
        pass

    async def handler(task: Any) -> None:
        pass

    handler.__annotations__["task"] = Plain

    async with MessageBus() as bus:
        with pytest.raises(TypeError, match="Plain"):
            await bus.subscribe("t", handler)


async def test_message_and_request_annotations_mean_the_message() -> None:
    async def one(message: Message) -> None:
        seen.append(type(message))

    async def two(request: Request) -> None:
        seen.append(type(request))

    async with MessageBus() as bus:
        await bus.subscribe("t", one)
        await bus.subscribe("t", two)
        await bus.subscribe("t", Collector())
        await bus.publish("t", 1)
        await eventually(lambda: seen == [Message, Message], "both")
