"""What the lines of a text install, and whether this project has it.

The names ``agent-os-kernel`` and ``agentmesh-message-bus`` on PyPI are not this project's: what the texts install by
them is in `amb-kernel` and `amb-core`, with the same extras. That each extra brings what it says, in a clean
environment, is in `tests.packaging`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import metadata, requires

from packaging.requirements import Requirement

#: The distribution of this project that gives what a text installs by another name.
OURS = {"agent-os-kernel": "amb-kernel", "agentmesh-message-bus": "amb-core", "amb-core": "amb-core", ".": "amb-core"}
#: What an extra is for; those that are not here are for something that is always there.
BRINGS = {
    **{name: {f"amb-{name}"} for name in ("redis", "kafka", "nats", "rabbitmq", "sqs", "azure")},
    "aws": {"amb-sqs"},
    "all-brokers": {"amb-redis", "amb-kafka", "amb-nats", "amb-rabbitmq", "amb-sqs", "amb-azure"},
    "all": {"amb-redis", "amb-kafka", "amb-nats", "amb-rabbitmq", "amb-sqs", "amb-azure", "protobuf"},
    "protobuf": {"protobuf", "grpcio-tools"},
    "dev": {"pytest", "pytest-cov", "build"},
    "amb": {"amb-core"},
}


def installed(text: str) -> Iterator[tuple[str, str]]:
    """Each distribution and extra that the lines of a text install; an extra may be empty."""
    for name, extras in re.findall(r'pip install (?:-e ")?([\w-]+|\.)(?:\[([\w,-]+)\])?', text):
        for extra in (extras or "").split(","):
            yield name, extra


def brought(name: str, extra: str) -> set[str]:
    """The distributions that an extra asks for, also by way of other extras."""
    found = set[str]()
    for need in map(Requirement, requires(name) or ()):
        if need.marker is None or need.marker.evaluate({"extra": extra}):
            found.add(need.name)
            found = found.union(*(brought(need.name, more) for more in need.extras))
    return found


def check(text: str, count: int) -> None:
    """Every one of the `count` extras (or plain distributions) is there, and asks for what it is for."""
    found = list(installed(text))
    assert len(found) == count
    for name, extra in found:
        ours = OURS[name]
        assert not extra or extra in (metadata(ours).get_all("Provides-Extra") or ()), f"{ours}[{extra}]"
        assert BRINGS.get(extra, set()) <= brought(ours, extra), f"{ours}[{extra}]"
