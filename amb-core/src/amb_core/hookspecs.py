"""The hooks a plugin may implement.

A plugin is a module with functions marked by `hookimpl`, named in its distribution's entry points under the name
it provides::

    [project.entry-points.amb]
    acme = "acme_amb.plugin"

::

    # acme_amb/plugin.py
    from amb_core.hookspecs import BrokerRegister, hookimpl

    @hookimpl
    def amb_register_brokers(register: BrokerRegister) -> None:
        from .broker import AcmeBroker
        register("acme", AcmeBroker, schemes=("acme", "acmes"), env={"url": "ACME_URL"})

AMB imports a plugin when its entry point's name is asked for (``MessageBus("acme")``), or a name that no entry
point has; a bus that never names it never imports it. A plugin that provides several names under one entry point
is found too, only later. Importing a plugin, and calling its hooks, must not import a client library: that belongs
behind ``connect()``.

Every hook is called once per process and plugin, synchronously, with a `register` function; call it as often as
needed. A function whose name begins with ``amb_`` and is no hook is an error that names it.
``AMB_TRACE_PLUGINS=1`` prints each call to stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from .broker import Broker
from .serializer import Serializer

if TYPE_CHECKING:
    import click

__all__ = [
    "BrokerRegister",
    "CommandRegister",
    "FilterRegister",
    "RetryPolicyRegister",
    "SerializerRegister",
    "amb_register_brokers",
    "amb_register_commands",
    "amb_register_filters",
    "amb_register_retry_policies",
    "amb_register_serializers",
    "hookimpl",
]

_hookspec = pluggy.HookspecMarker("amb")
#: Marks a function of a plugin as the implementation of the hook of the same name.
hookimpl = pluggy.HookimplMarker("amb")


class BrokerRegister(Protocol):
    """Makes a broker known by name and by URL scheme."""

    def __call__(
        self,
        name: str,
        cls: Callable[..., Broker],
        *,
        schemes: Sequence[str] = (),
        url_option: str = "url",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Register the options struct `cls` as the broker `name`.

        `schemes`: the URL schemes that mean this broker, beside `name` itself. `url_option`: the field that
        takes ``broker_url=`` and a URL given as the broker. `env`: for a field, a variable that is read when
        ``AMB_<NAME>_<FIELD>`` is not set; those variables are read for every field without being named here.
        """
        ...


class SerializerRegister(Protocol):
    """Makes a serializer known by name and by content type."""

    def __call__(self, name: str, factory: Callable[[], Serializer], *, content_types: Sequence[str] = ()) -> None:
        """Register `factory`, called without arguments when the serializer is first needed.

        `content_types`: every media type it can decode, in lower case without parameters.
        """
        ...


class FilterRegister(Protocol):
    """Makes a message filter known by name."""

    def __call__(self, name: str, factory: Callable[..., Callable[[Any], bool]]) -> None:
        """Register `factory`: called with the user's arguments, it returns a predicate of the message."""
        ...


class RetryPolicyRegister(Protocol):
    """Makes a retry policy known by name."""

    def __call__(self, name: str, factory: Callable[..., Any]) -> None:
        """Register `factory`: called with the user's options, it returns an `amb_core.RetryPolicy`."""
        ...


class CommandRegister(Protocol):
    """Adds a command to the ``amb`` command line."""

    def __call__(self, name: str, factory: Callable[[], click.Command], *, help: str = "") -> None:
        """Register `factory`, called when ``amb name`` runs; `help` is its line in ``amb --help``."""
        ...


@_hookspec(historic=True)
def amb_register_brokers(register: BrokerRegister) -> None:
    """Register brokers. The classes implement `amb_core.broker.Broker`."""


@_hookspec(historic=True)
def amb_register_serializers(register: SerializerRegister) -> None:
    """Register serializers. They implement `amb_core.serializer.Serializer`."""


@_hookspec(historic=True)
def amb_register_filters(register: FilterRegister) -> None:
    """Register message filters: functions of a message that say whether the handler gets it. They must not block."""


@_hookspec(historic=True)
def amb_register_retry_policies(register: RetryPolicyRegister) -> None:
    """Register retry policies, for ``MessageBus(retry_policy="name")``."""


@_hookspec(historic=True)
def amb_register_commands(register: CommandRegister) -> None:
    """Register commands of the ``amb`` command line. They are click commands."""
