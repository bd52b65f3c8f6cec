"""Every broker by its documented import path; nothing is imported before it is asked for.

``from amb_core.adapters import RedisBroker`` and ``from amb_core.adapters.redis_broker import RedisBroker`` give
the class of the distribution ``amb-redis``. Raises: PluginError with the command that installs it, which is also
an ImportError.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import PluginError

if TYPE_CHECKING:
    from ..memory import InMemoryBroker as InMemoryBroker

#: Class name by documented spelling, and the distribution's folder.
_BROKERS = {
    "RedisBroker": ("amb_redis", "RedisBroker"),
    "KafkaBroker": ("amb_kafka", "KafkaBroker"),
    "NatsBroker": ("amb_nats", "NatsBroker"),
    "NATSBroker": ("amb_nats", "NatsBroker"),
    "RabbitMQBroker": ("amb_rabbitmq", "RabbitMQBroker"),
    "SQSBroker": ("amb_sqs", "SQSBroker"),
    "AWSSQSBroker": ("amb_sqs", "SQSBroker"),
    "AzureServiceBusBroker": ("amb_azure", "AzureServiceBusBroker"),
}


class _NotInstalled(PluginError, ImportError):
    """A broker's distribution is missing or broken."""


def __getattr__(name: str) -> Any:
    if name == "InMemoryBroker":
        from ..memory import InMemoryBroker

        return InMemoryBroker
    if name not in _BROKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__dir__())}")
    package, class_name = _BROKERS[name]
    dist = package.replace("_", "-")
    try:
        return getattr(import_module(f"{package}.broker"), class_name)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise _NotInstalled(f"{name} is not installed: pip install {dist}") from None
        raise _broken(name, dist, error) from error
    except Exception as error:
        raise _broken(name, dist, error) from error


def __dir__() -> list[str]:
    return sorted([*_BROKERS, "InMemoryBroker"])


def _broken(name: str, dist: str, error: Exception) -> _NotInstalled:
    why = f"{type(error).__name__}: {error}"
    return _NotInstalled(f"{name}: {dist} is installed but cannot be imported: {why}. Reinstall or upgrade {dist}")


def lazy(*names: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that offers `names`."""

    def getter(name: str) -> Any:
        if name in names:
            return __getattr__(name)
        raise AttributeError(f"the module has no {name!r}; it has {', '.join(names)}")

    return getter
