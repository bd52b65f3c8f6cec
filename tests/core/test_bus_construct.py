"""Building a bus: unknown names get advice, and what makes no sense is refused before anything is touched."""

from __future__ import annotations

from typing import Any

import amb_core.adapters
import pytest
from amb_core import ConfigurationError, InMemoryBroker, MessageBus, PluginError, _plugins
from amb_core._registry import Registry

from ._dists import uninstall

REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "a name with a slip": (lambda: MessageBus("memroy"), PluginError, "memroy.*did you mean 'memory'"),
    "an unknown name": (lambda: MessageBus("carrier-pigeon"), PluginError, "carrier-pigeon"),
    "an unknown scheme": (lambda: MessageBus("redsi://localhost"), PluginError, "redsi.*did you mean 'redis'"),
    "an unknown serializer": (lambda: MessageBus(serializer="jsno"), PluginError, "jsno.*did you mean 'json'"),
    "an unknown policy": (lambda: MessageBus(retry_policy="exponentail"), PluginError, "exponentail.*exponential"),
    "two brokers": (lambda: MessageBus("memory", adapter="memory"), TypeError, "broker and adapter"),
    "a class": (lambda: MessageBus(InMemoryBroker), TypeError, r"InMemoryBroker\(\.\.\.\)"),  # type: ignore[arg-type]
    "no broker at all": (lambda: MessageBus(object()), TypeError, "no capabilities and no connect"),  # type: ignore[arg-type]
    "an unknown option": (lambda: MessageBus(prefetch=3), TypeError, "prefetch"),  # type: ignore[call-arg]
    "an unknown broker option": (lambda: InMemoryBroker(queue=3), TypeError, "queue"),  # type: ignore[call-arg]
    "an unknown URL option": (lambda: MessageBus("redis://h?colour=red"), ConfigurationError, "'colour'.*redis"),
    "a wrong type": (lambda: InMemoryBroker(max_queue_size="x"), ConfigurationError, "max_queue_size"),  # type: ignore[arg-type]
    "a wrong value": (lambda: InMemoryBroker(failure_rate=2), ConfigurationError, "failure_rate.*0 to 1"),
    "object and URL": (lambda: MessageBus(InMemoryBroker(), broker_url="x://y"), TypeError, "broker_url"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_built_says_what_to_do(case: Any) -> None:
    build, kind, text = case
    with pytest.raises(kind, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_broker_is_a_value() -> None:
    assert InMemoryBroker(lease=5) == InMemoryBroker(lease=5) != InMemoryBroker(lease=6)
    with pytest.raises(AttributeError):
        InMemoryBroker().lease = 5  # type: ignore[misc]


@pytest.mark.parametrize(("broker", "dist"), [("kafka", "amb-kafka"), ("nats://localhost", "amb-nats")])
def test_a_broker_that_is_not_installed_is_named_with_the_command(
    broker: str, dist: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plugins, "_registry", Registry(find=list))
    with pytest.raises(PluginError, match=f"pip install {dist}") as caught:
        MessageBus(broker)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["RedisBroker", "NATSBroker", "NatsBroker", "SQSBroker", "AWSSQSBroker",
                                  "KafkaBroker", "RabbitMQBroker", "AzureServiceBusBroker"])  # fmt: skip
def test_a_documented_broker_class_that_is_not_installed_is_an_import_error_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = amb_core.adapters._BROKERS[name][0]
    uninstall(package, monkeypatch)
    for module in (amb_core, amb_core.adapters):
        with pytest.raises(ImportError, match=f"pip install {package.replace('_', '-')}$"):
            getattr(module, name)
