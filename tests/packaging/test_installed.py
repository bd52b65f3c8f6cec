"""What works after ``pip install``: the command line, the plugins, and a bus with nothing else installed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from scripts.build import BuildFailed, Environment, run

pytestmark = pytest.mark.timeout(300)

_ROUND_TRIP = """
import anyio
from amb_core import Message, MessageBus

async def main():
    async with MessageBus() as bus:
        @bus.responder("sum")
        async def add(request: Message):
            return sum(request.data)
        print((await bus.request("sum", [1, 2, 3])).data)

anyio.run(main)
"""

_PLUGINS = """
from importlib.metadata import entry_points
for point in sorted(entry_points(group="amb"), key=lambda point: point.name):
    print(point.name, point.value, point.load().__name__)
"""


@pytest.fixture(scope="session")
def with_redis(environment: Callable[..., Environment]) -> Environment:
    """``pip install 'amb-core[redis]'``."""
    return environment("amb-core[redis]")


def amb(environment: Environment, *arguments: str) -> str:
    """What the installed command prints."""
    return run([str(environment.bin / "amb"), *arguments])


def test_the_core_alone_publishes_and_answers(core_only: Environment) -> None:
    assert core_only.python(_ROUND_TRIP) == "6"


def test_the_command_is_installed_and_tells_its_version(core_only: Environment) -> None:
    assert "1.0.0" in amb(core_only, "--version")


def test_python_m_is_the_command_too(core_only: Environment) -> None:
    assert run([str(core_only.bin / "python"), "-I", "-m", "amb_core.cli", "--version"]) == amb(core_only, "--version")


def listed(environment: Environment) -> dict[str, dict[str, str]]:
    """What ``amb backends`` says of each broker."""
    return {one["name"]: one for one in json.loads(amb(environment, "backends", "--json"))}


def test_a_backend_is_found_by_installing_it(core_only: Environment, with_redis: Environment) -> None:
    assert listed(core_only)["redis"]["problem"] == "not installed: pip install amb-redis"
    assert listed(core_only)["kafka"]["capabilities"] is None
    assert listed(with_redis)["redis"]["plugin"] == "amb-redis:redis"


def test_the_core_has_no_entry_point_of_its_own_in_the_group(core_only: Environment) -> None:
    assert core_only.python(_PLUGINS) == ""


def test_the_entry_points_name_modules_that_load(with_redis: Environment) -> None:
    assert with_redis.python(_PLUGINS) == "redis amb_redis.plugin amb_redis.plugin"


def test_a_missing_backend_is_asked_for_with_the_command_that_brings_it(core_only: Environment) -> None:
    code = "from amb_core import MessageBus; MessageBus('redis')"
    with pytest.raises(BuildFailed, match="the broker 'redis' is not installed: pip install amb-redis"):
        core_only.python(code)


def test_without_the_testing_extra_the_kit_runs_or_says_what_it_needs(core_only: Environment) -> None:
    assert "A1" in amb(core_only, "conform", "memory", "--only", "A1")


def test_a_doctor_names_what_is_not_installed_and_the_command_that_installs_it(core_only: Environment) -> None:
    with pytest.raises(BuildFailed, match="pip install amb-nats"):
        amb(core_only, "doctor", "--broker", "nats")
    with pytest.raises(BuildFailed, match="pip install amb-kafka"):
        amb(core_only, "publish", "a", "1", "--broker", "kafka")
