"""Agents: bound to their name, started, stopped, crashed and started again."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from amb_core import ConfigurationError, Message, MessageBus, RetryPolicy
from amb_kernel import AgentKernel, Context, KernelSpace, PolicyDenied

from ._help import collecting, eventually, kernel_with

pytestmark = pytest.mark.anyio
ONLY_A = {"topic": "t", "allow": ["a"]}


async def test_an_agent_serves_after_its_run_has_returned() -> None:
    kernel, _ = kernel_with()

    @kernel.agent("worker-agent")
    class Worker:
        async def run(self, kernel: AgentKernel) -> None:
            self.factor = 2

            @kernel.subscribe("double")
            async def on(msg: Message) -> int:
                return int(msg.data) * self.factor

            await kernel.publish("ready", kernel.name)

    async with kernel:
        await eventually(lambda: kernel.agents["worker-agent"].state == "serving", "its run returned")
        assert (await kernel.request("double", 21, timeout=5)).data == 42
        await kernel.stop_agent("worker-agent")
        assert kernel.agents["worker-agent"].state == "stopped"
        with pytest.raises(ConnectionError):
            await kernel.request("double", 21, timeout=5)
        await kernel.start_agent("worker-agent")
        await eventually(lambda: kernel.agents["worker-agent"].state == "serving", "it is back")
        assert (await kernel.request("double", 4, timeout=5)).data == 8
    assert kernel.agents["worker-agent"].state == "stopped"


async def test_code_of_an_agent_acts_as_the_agent_whichever_kernel_it_uses() -> None:
    """The kernel of the program is no way around the policy, nor is any method, handler or schedule."""
    kernel, records = kernel_with(ONLY_A, audit_topic=None)
    done: list[str] = []

    async def attempt(what: str) -> None:
        with pytest.raises(PolicyDenied, match="'b'"):
            await kernel.publish("t", what)
        done.append(what)

    class Base:
        async def inherited(self) -> None:
            await attempt("inherited")

        async def __aenter__(self) -> None:
            await attempt("enter")

        async def __aexit__(self, *error: object) -> None: ...

    @kernel.agent("b")
    class Agent(Base):
        async def run(self, view: AgentKernel) -> None:
            await attempt("run")

            @kernel.subscribe("u")
            async def handler(msg: Message) -> None:
                await attempt("handler")

            @view.schedule(interval=60)
            async def scheduled() -> None:
                await attempt("schedule")

            with pytest.raises(PolicyDenied):
                await view.publish("t", 1)

        async def method(self) -> None:
            await attempt("method")

        @staticmethod
        async def static() -> None:
            await attempt("static")

        @classmethod
        async def of_class(cls) -> None:
            await attempt("of class")

        def plain(self) -> Any:
            return kernel.publish("t", "plain")

    @kernel.register(name="b", roles=[])
    async def function(task: str) -> None:
        await attempt(task)

    async with kernel:
        await Agent().method()
        await Agent.static()
        await Agent.of_class()
        await Agent().inherited()
        async with Agent():
            pass
        await function("registered")
        with pytest.raises(PolicyDenied, match="'b'"):
            await Agent().plain()
        await eventually(lambda: "schedule" in done, "the schedule")
        with pytest.raises(PolicyDenied, match="'kernel'"):
            await kernel.publish("t", 1)
        await kernel.publish("u", 1)
        await eventually(lambda: "handler" in done, "the handler")
    assert set(done) == {
        "enter", "handler", "inherited", "method", "of class", "registered", "run", "schedule", "static",
    }  # fmt: skip
    assert {record.agent for record in records.of("denied")} == {"b", "kernel"}


async def test_hooks_of_the_program_run_as_the_kernel_also_for_an_agents_messages() -> None:
    kernel, _ = kernel_with({"topic": "alerts", "allow": ["kernel"]})
    alerts = collecting()

    @kernel.message_validator("t")
    async def validate(msg: Message, context: Context) -> None:
        await kernel.publish("alerts", "validator")

    @kernel.agent("a")
    class Agent:
        async def run(self, view: AgentKernel) -> None:
            view.subscribe("t")(collecting())
            await view.publish("t", 1)

    async with kernel:
        await kernel.subscribe("alerts", alerts)
        await kernel.publish("t", 1)
        await alerts.wait()


async def test_nothing_that_an_agent_is_handed_leads_to_the_bus() -> None:
    handed: list[Any] = []
    kernel, _ = kernel_with()

    @kernel.on_message("t")
    async def on(msg: Message, context: Context) -> None:
        handed.extend([msg, context])

    @kernel.agent("a")
    class Agent:
        async def run(self, view: AgentKernel) -> None:
            handed.extend([view, await view.subscribe("x", collecting()), await view.elect_leader("lead")])
            handed.append(await view.request("answer", 1, timeout=5))

    @kernel.subscribe("answer")
    async def answer(msg: Message) -> None:
        handed.append(msg)

    async with kernel:
        await kernel.publish("t", 1)
        await eventually(lambda: len(handed) == 7, lambda: f"{handed}")
        for thing in handed:
            for seen in _reachable(thing, 5):
                assert not isinstance(seen, MessageBus | KernelSpace), (thing, seen)
                assert isinstance(seen, AgentKernel) or not hasattr(seen, "publish"), (thing, seen)
                assert not hasattr(seen, "connect") and not hasattr(seen, "send"), (thing, seen)


def _reachable(thing: Any, depth: int) -> list[Any]:
    """What attributes lead to, of objects that are ours (an event loop anybody has): of a message the public ones,
    because what is behind those is the core's, of anything else all, and from a method to whose it is."""
    found, ours = [thing], type(thing).__module__.startswith("amb_")
    for name in dir(thing) if depth and ours else ():
        if name.startswith("__") or (name.startswith("_") and isinstance(thing, Message)):
            continue
        value = getattr(thing, name, None)
        if not callable(value):
            found += _reachable(value, depth - 1)
        elif getattr(value, "__self__", thing) is not thing and not isinstance(value.__self__, type):
            found += _reachable(value.__self__, depth - 1)
    return found


async def test_a_crash_is_seen_and_recorded_and_takes_along_only_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    kernel, records = kernel_with()

    @kernel.agent("weak")
    class Weak:
        async def run(self, view: AgentKernel) -> None:
            view.subscribe("weak")(collecting())
            raise OSError("no disk")

    @kernel.agent("strong")
    class Strong:
        async def run(self, view: AgentKernel) -> None:
            @view.subscribe("strong")
            async def answer(msg: Message) -> str:
                return "here"

    with caplog.at_level(logging.ERROR, "amb.kernel"):
        async with kernel:
            await eventually(lambda: records.of("agent.crashed"), "the record")  # what it began has ended by then
            await eventually(lambda: kernel.agents["strong"].state == "serving", "the strong one")
            assert isinstance(kernel.agents["weak"].error, OSError)
            assert (await kernel.request("strong", 1, timeout=5)).data == "here"
            with pytest.raises(ConnectionError):
                await kernel.request("weak", 1, timeout=5)
    assert records.of("agent.crashed")[0].detail["error"] == "OSError: no disk"
    assert "agent 'weak' crashed" in caplog.text and "no disk" in caplog.text
    assert kernel.agents["weak"].state == "crashed"


async def test_a_crashed_agent_is_started_again_as_often_as_it_may() -> None:
    kernel, records = kernel_with()
    starts: list[float] = []

    @kernel.agent("flaky", restart=RetryPolicy(max_retries=2, initial_delay=0.05, exponential_base=2, jitter=0))
    class Flaky:
        async def run(self, view: AgentKernel) -> None:
            starts.append(anyio.current_time())
            if len(starts) < 6:
                raise OSError("again")

    async with kernel:
        await eventually(lambda: len(records.of("agent.crashed")) == 3, "three crashes")
        assert kernel.agents["flaky"].state == "crashed" and kernel.agents["flaky"].restarts == 2
        await kernel.start_agent("flaky")  # by hand: its restarts begin anew
        await eventually(lambda: kernel.agents["flaky"].state == "serving", "it holds")
        await kernel.start_agent("flaky")  # it lives: nothing happens
    assert len(starts) == 6
    # Differences of binary fractions, of whole milliseconds on uvloop.
    assert round(starts[1] - starts[0], 3) >= 0.05 and round(starts[2] - starts[1], 3) >= 0.1


async def test_a_stopped_agent_is_cancelled_and_what_it_began_ends() -> None:
    kernel, records = kernel_with()
    ended: list[str] = []

    @kernel.agent("a")
    class Agent:
        async def run(self, view: AgentKernel) -> None:
            @view.schedule(interval=0.01)
            async def tick() -> None:
                ticks.append(1)

            try:
                await anyio.sleep_forever()
            finally:
                ended.append("cleaned up")

    ticks: list[int] = []
    async with kernel:
        await eventually(lambda: len(ticks) > 2, "ticks")
        await kernel.stop_agent("a")
        count = len(ticks)
        await anyio.sleep(0.05)
        assert ended == ["cleaned up"] and len(ticks) == count
        with pytest.raises(ValueError, match="no agent 'b'; the agents are: a"):
            await kernel.stop_agent("b")
    assert [record.agent for record in records.of("agent.stopped")] == ["a", "kernel"]


async def test_a_schedule_that_fails_is_called_again_and_never_twice_at_once(caplog: pytest.LogCaptureFixture) -> None:
    kernel, records = kernel_with()
    running, most, calls = 0, 0, 0

    @kernel.schedule(interval=0.02)
    async def slow() -> None:
        nonlocal running, most, calls
        running, calls = running + 1, calls + 1
        most = max(most, running)
        await anyio.sleep(0.05)
        running -= 1
        if calls == 1:
            raise OSError("first")

    for wrong in (0, -1, True):
        with pytest.raises(ValueError):
            kernel.schedule(interval=wrong)
    with pytest.raises(TypeError, match="async def"):
        kernel.schedule(interval=1)(lambda: None)
    with caplog.at_level(logging.ERROR, "amb.kernel"):
        async with kernel:
            await eventually(lambda: calls >= 4, "calls")
    assert most == 1
    assert [record.detail["error"] for record in records.of("schedule.failed")] == ["OSError: first"]


async def test_a_schedule_runs_at_once_and_then_keeps_its_beat() -> None:
    kernel, _ = kernel_with()
    times: list[float] = []

    @kernel.schedule(interval=0.1)
    async def tick() -> None:
        times.append(anyio.current_time())

    began = anyio.current_time()
    async with kernel:
        await eventually(lambda: len(times) == 4, "four ticks")
    # Each may be late, none early.
    assert all(time - began >= 0.1 * number - 0.02 for number, time in enumerate(times))


async def test_names_are_taken_once() -> None:
    kernel, _ = kernel_with()
    kernel.agent("a")(type("A", (), {}))
    for name in ("a", "kernel"):
        with pytest.raises(ConfigurationError, match="already"):
            kernel.agent(name)(type("A", (), {}))
    with pytest.raises(TypeError, match="async def"):
        kernel.agent("s")(type("S", (), {"run": lambda self, kernel: None}))
    with pytest.raises(TypeError, match=r"kernel\.register"):
        kernel.agent("f")(lambda: None)  # type: ignore[type-var]


async def test_one_task_may_start_the_kernel_and_another_stop_it_also_from_a_handler() -> None:
    kernel, _ = kernel_with()

    @kernel.subscribe("stop")
    async def stop(msg: Message) -> None:
        await kernel.stop()

    async with anyio.create_task_group() as group:
        group.start_soon(kernel.start)
    async with anyio.create_task_group() as group:
        group.start_soon(kernel.stop)
        group.start_soon(kernel.stop)
    await kernel.stop()

    async def stop_soon() -> None:
        await kernel.publish("stop", 1)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(kernel.run_forever)
            await anyio.sleep(0.05)
            group.start_soon(stop_soon)


async def test_a_kernel_that_cannot_start_says_why_and_may_try_again() -> None:
    kernel, _ = kernel_with()
    kernel.subscribe("t", group="")(collecting())
    for _ in range(2):
        with pytest.raises(ValueError, match="group"):
            await kernel.start()
    await kernel.unsubscribe("t")
    async with kernel:
        await kernel.publish("t", 1)


async def test_an_agent_may_be_added_to_a_kernel_that_runs() -> None:
    kernel, _ = kernel_with()
    async with kernel:
        seen: list[str] = []

        @kernel.agent("late")
        class Late:
            async def run(self, view: AgentKernel) -> None:
                seen.append(view.name)

        await eventually(lambda: seen == ["late"], "it ran")


async def test_an_agent_that_comes_while_the_kernel_stops_does_not_hold_it_up() -> None:
    kernel, _ = kernel_with()
    leaving, added = anyio.Event(), anyio.Event()

    @kernel.agent("early")
    class Early:
        async def run(self, view: AgentKernel) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                leaving.set()
                with anyio.CancelScope(shield=True):
                    await added.wait()

    async def add() -> None:
        await leaving.wait()
        kernel.agent("late")(type("Late", (), {}))
        added.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(add)
            async with kernel:
                await eventually(lambda: kernel.agents["early"].state == "running", "it runs")
    assert kernel.agents["late"].state in ("new", "stopped")


async def test_what_had_stopped_the_bus_is_raised_by_stop() -> None:
    bus = MessageBus("memory")
    kernel = KernelSpace(message_bus=bus)
    leave = bus.disconnect

    async def failing() -> None:
        await leave()
        raise ConnectionError("the password was changed")

    bus.disconnect = failing  # type: ignore[method-assign]
    await kernel.start()
    with anyio.fail_after(5), pytest.raises(ConnectionError, match="password"):
        await kernel.stop()
    await kernel.stop()
