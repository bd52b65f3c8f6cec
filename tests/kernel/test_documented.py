"""What a user of the kernel can write or see is on its page, and its names are those of the Agent OS pages."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import agent_os
import agent_os.amb
import agent_os.amb.adapters
import amb_core
import amb_kernel
import pytest
from amb_core import adapters
from amb_kernel import AgentKernel, AgentStatus, AuditRecord, Context, KernelSpace, Leadership, Policy, Rule

from tests.architecture._source import KERNEL, modules

PAGE = (Path(__file__).parents[2] / "docs" / "kernel.md").read_text()


def _documented() -> set[str]:
    return {word for code in re.findall(r"`([^`\n]+)`", PAGE) for word in re.findall(r"\w+", code)}


def _public(cls: type) -> list[str]:
    return [name for name in vars(cls) if not name.startswith("_")]


@pytest.mark.parametrize("cls", [AgentKernel, KernelSpace, Leadership, Context])
def test_every_verb_is_documented(cls: type) -> None:
    assert sorted(set(_public(cls)) - set(re.findall(r"\w+", PAGE))) == []


@pytest.mark.parametrize("struct", [Policy, Rule, AuditRecord, AgentStatus])
def test_every_field_is_documented(struct: type) -> None:
    assert sorted(set(struct.__struct_fields__) - _documented()) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("callable", [KernelSpace, KernelSpace.agent, AgentKernel.subscribe, AgentKernel.elect_leader])
def test_every_option_is_documented(callable: object) -> None:
    options = set(inspect.signature(callable).parameters) - {"self", "options", "handler"}  # type: ignore[arg-type]
    assert sorted(options - _documented()) == []


def test_every_public_name_is_documented() -> None:
    assert sorted(set(amb_kernel.__all__) - _documented() - {"Rate"}) == []


def test_every_event_is_documented() -> None:
    written = {
        event
        for path in modules(KERNEL)
        for event in re.findall(r'\.(?:note|write)\(\s*"([a-z._]+)"', path.read_text())
    }
    assert {"denied", "leader.lost"} <= written
    assert sorted(written - set(re.findall(r"`([a-z._]+)`", PAGE))) == []


def test_agent_os_has_the_names_of_the_kernel() -> None:
    assert {name: getattr(agent_os, name) for name in amb_kernel.__all__} == {
        name: getattr(amb_kernel, name) for name in amb_kernel.__all__
    }


def test_agent_os_amb_has_the_names_of_the_core_lazy_ones_too() -> None:
    lazy = [
        "RedisBroker",
        "NatsBroker",
        "NATSBroker",
        "KafkaBroker",
        "SQSBroker",
        "InMemoryBroker",
        "MsgPackSerializer",
    ]
    for name in [*amb_core.__all__, *lazy]:
        assert getattr(agent_os.amb, name) is getattr(amb_core, name)
    with pytest.raises(AttributeError, match="Nothing"):
        agent_os.amb.Nothing  # noqa: B018


def test_agent_os_amb_adapters_has_the_brokers() -> None:
    for name in dir(adapters):
        assert getattr(agent_os.amb.adapters, name) is getattr(adapters, name)
    assert dir(agent_os.amb.adapters) == dir(adapters)
