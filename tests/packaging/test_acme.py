"""An outsider's plugin: installed as a user would, found by name, and proved with the kit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import build
from scripts.build import BuildFailed, Environment, run

from .test_installed import amb

ACME = build.ROOT / "tests" / "acme_amb"
pytestmark = pytest.mark.timeout(300)

_ROUND_TRIP = """
import sys
import anyio
from amb_core import Message, MessageBus

async def main(folder):
    async with MessageBus("acme", broker_url=folder, serializer="acme") as bus:
        @bus.responder("sums", group="adders")
        async def add(request: Message):
            return {"sum": sum(request.data["numbers"])}
        reply = await bus.request("sums", {"numbers": [1, 2, 3]})
        print(type(bus.broker).__module__, reply.data)

anyio.run(main, sys.argv[1])
"""

_OTHER_SERIALIZER = """
import sys
import anyio
from amb_core import Message, MessageBus

async def main(folder):
    got = []
    async with MessageBus(f"acme://{folder}") as reader, MessageBus(f"acme://{folder}", serializer="acme") as writer:
        @reader.subscriber("mixed")
        async def note(message: Message):
            got.append(message.data)
        await reader.connect()
        await writer.publish("mixed", {"from": "acme"})
        await reader.publish("mixed", {"from": "json"})
        with anyio.fail_after(20):
            while len(got) < 2:
                await anyio.sleep(0.01)
    print(sorted(one["from"] for one in got))

anyio.run(main, sys.argv[1])
"""

_CONFORM = """
import logging, sys
from acme_amb import AcmeBroker
from amb_core.testing import Rig, conform

logging.disable()  # the cases break things on purpose
rig = Rig(make=lambda: AcmeBroker(sys.argv[1], lease=2.0), name="acme", quick=True)
report = conform(rig, backend=sys.argv[2], ids=sys.argv[3:] or None)
print(report.table())
assert report.ok
"""

_REFUSED_BY_SERIALIZER = """
from amb_core._plugins import load_serializer
from amb_core.errors import DecodeError, EncodeError

acme = load_serializer("acme")
for value in (float("nan"), {1: "a"}, (1, 2), {1}, object(), b"bytes"):
    try:
        acme.encode(value)
    except EncodeError as error:
        continue
    raise AssertionError(value)
decode = acme.decoder(dict[str, int])
assert decode(acme.encode({"a": 1})[0], acme.content_type) == {"a": 1}
for body in (b"", b"x", acme.encode({"a": 1})[0][:-1], acme.encode({"a": 1})[0] + b"x", acme.encode({"a": "b"})[0]):
    try:
        decode(body, acme.content_type)
    except DecodeError as error:
        continue
    raise AssertionError(body)
print("refused")
"""


@pytest.fixture(scope="session")
def acme(dists: Path, environment: Callable[..., Environment]) -> Environment:
    """A clean environment with the wheels of the core and of acme."""
    wheel = next(file for file in build.build(ACME, dists) if file.suffix == ".whl")
    return environment(str(wheel))


def test_it_brings_the_core_and_nothing_else_of_ours(acme: Environment) -> None:
    ours = {name: version for name, version in acme.installed().items() if "amb" in name}
    assert ours == {"acme-amb": "0.3.1", "amb-core": "1.0.0"}


def test_it_is_found_by_its_name(acme: Environment) -> None:
    listed = {one["name"]: one for one in json.loads(amb(acme, "backends", "--json"))}
    assert listed["acme"]["plugin"] == "acme-amb:acme"
    assert listed["acme"]["capabilities"]["groups"] is True


def test_it_is_a_broker_and_a_serializer_like_any(acme: Environment, tmp_path: Path) -> None:
    said = acme.python(_ROUND_TRIP, str(tmp_path / "spool"))
    assert said == "acme_amb.broker {'sum': 6}"


def test_its_messages_are_read_by_buses_with_another_serializer(acme: Environment, tmp_path: Path) -> None:
    assert acme.python(_OTHER_SERIALIZER, str(tmp_path / "spool")) == "['acme', 'json']"


def test_its_serializer_refuses_what_would_come_back_different(acme: Environment) -> None:
    assert acme.python(_REFUSED_BY_SERIALIZER) == "refused"


def test_its_wrong_options_are_answered_by_name(acme: Environment) -> None:
    with pytest.raises(BuildFailed, match=r"did you mean 'lease'"):
        amb(acme, "publish", "t", "1", "--url", "acme:///tmp/nowhere?leese=1")


def test_what_it_does_not_claim_is_refused(acme: Environment, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"AcmeBroker does not support delayed publishing .*memory can"):
        amb(acme, "publish", "t", "1", "--delay", "5", "--url", f"acme://{tmp_path}/spool")


def test_it_holds_what_it_claims(acme: Environment, tmp_path: Path) -> None:
    """All cases, on asyncio."""
    said = acme.python(_CONFORM, str(tmp_path / "spool"), "asyncio")
    assert " 0 failed" in said


def test_it_holds_on_trio_too(
    acme: Environment, dists: Path, environment: Callable[..., Environment], tmp_path: Path
) -> None:
    made = environment(str(next(dists.glob("acme_amb-*.whl"))), "trio")
    assert " 0 failed" in made.python(_CONFORM, str(tmp_path / "spool"), "trio", "A", "C", "H")


def test_amb_conform_runs_the_kit(acme: Environment, tmp_path: Path) -> None:
    url = f"acme://{tmp_path}/spool?lease=2"
    summary = json.loads(run([str(acme.bin / "amb"), "conform", "acme", "--url", url, "--only", "B", "--json"]))
    assert summary["failed"] == 0 and summary["passed"] == 10
