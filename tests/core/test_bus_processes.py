"""What only a fresh interpreter can show: signals, the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence

import pytest


def python(code: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The outcome of `code` in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env=_environment(environ),
        check=False,
    )


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in os.environ if not name.startswith(("AMB_", "PYTHONDONT"))}
    return kept | more


SERVICE = """
    import anyio, asyncio
    from amb_core import MessageBus
    bus = MessageBus()

    @bus.subscriber("t", group="g")
    async def handler(message):
        print("started", flush=True)
        await asyncio.sleep(0.3)
        print("finished", flush=True)

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(bus.run_forever)
            while not bus.connected:
                await anyio.sleep(0.01)
            await bus.publish("t", 1)
        print("left", bus.connected, flush=True)

    {run}
"""
RUNNERS = {
    "asyncio": "asyncio.run(main())",
    "uvloop": "import uvloop; uvloop.run(main())",
    "anyio": "anyio.run(main)",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("runner", RUNNERS)
def test_run_forever_finishes_what_runs_and_returns_on_a_signal(runner: str, number: signal.Signals) -> None:
    code = textwrap.dedent(SERVICE).format(run=RUNNERS[runner])
    assert _signalled([sys.executable, "-c", code], number) == (0, ["started", "finished", "left False"], "")


def test_run_forever_finishes_on_a_signal_under_trio() -> None:
    code = textwrap.dedent(SERVICE).replace("asyncio", "trio").format(run="trio.run(main)")
    assert _signalled([sys.executable, "-c", code], signal.SIGTERM) == (0, ["started", "finished", "left False"], "")


def _signalled(command: Sequence[str], number: signal.Signals) -> tuple[int, list[str], str]:
    """Exit code and output of a process that gets a signal after its first line."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment({})
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
    return process.returncode, (first + out).splitlines(), error


WHICH = """
from amb_core import MessageBus
bus = MessageBus({arguments})
print(type(bus.broker).__name__, bus.codec.serializer.name)
"""


@pytest.mark.parametrize(
    ("environ", "arguments", "expected"),
    [
        ({}, "", "InMemoryBroker json"),
        ({"AMB_BROKER": "redis"}, "", "RedisBroker json"),
        ({"AMB_BROKER": "redis"}, "'memory'", "InMemoryBroker json"),
        ({"AMB_BROKER": "redis://localhost:1/2"}, "", "RedisBroker json"),
        ({"AMB_SERIALIZER": "msgpack"}, "", "InMemoryBroker msgpack"),
        ({"AMB_SERIALIZER": "msgpack"}, "serializer='json'", "InMemoryBroker json"),
        ({"PYTEST_CURRENT_TEST": "x", "AMB_BROKER": "redis"}, "", "RedisBroker json"),
    ],
)
def test_argument_wins_over_environment_wins_over_memory(
    environ: dict[str, str], arguments: str, expected: str
) -> None:
    done = python(WHICH.format(arguments=arguments), **environ)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def test_the_documented_variables_reach_the_broker_and_the_argument_wins() -> None:
    code = """
        from amb_core import MessageBus
        given = MessageBus(broker_url="redis://argument:2").broker
        print(MessageBus().broker.url, given.url, given.pool_size)
    """
    done = python(code, AMB_BROKER="redis", AMB_REDIS_URL="redis://environment:1", AMB_REDIS_POOL_SIZE="7")
    assert (done.stdout.split(), done.stderr) == (["redis://environment:1", "redis://argument:2", "7"], "")


def test_a_child_that_dies_of_a_bad_option_names_the_variable() -> None:
    done = python("from amb_core import MessageBus; MessageBus()", AMB_BROKER="redis", AMB_REDIS_POOL_SIZE="many")
    assert done.returncode == 1
    assert "AMB_REDIS_POOL_SIZE" in done.stderr.splitlines()[-1]
