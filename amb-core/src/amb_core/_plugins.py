"""Brokers, serializers, filters, retry policies and commands by name, AMB's own and installed ones alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._registry import Entry, Registry
from .broker import Broker
from .errors import AmbError, DecodeError, PluginError
from .serializer import Serializer

if TYPE_CHECKING:
    import click

    from ._retry import RetryPolicy

_registry: Registry | None = None


def registry() -> Registry:
    """The process's registry."""
    global _registry
    if _registry is None:
        _registry = Registry()
    return _registry


def load_serializer(name: str) -> Serializer:
    """A new serializer of that name. Raises: PluginError."""
    return _build_serializer(registry().find("serializer", name.strip().lower()))


def serializer_for_content_type(content_type: str) -> Serializer | None:
    """A new serializer that decodes the media type, given in lower case without parameters; None if none is
    installed. A type that ends in ``+json`` is JSON, if nobody claims it. Raises: DecodeError if it is broken."""
    try:
        entry = registry().seek_alias("serializer", content_type)
        if entry is None and content_type.endswith("+json"):
            entry = registry().seek("serializer", "json")
        return None if entry is None else _build_serializer(entry)
    except PluginError as error:
        raise DecodeError(f"the content type {content_type!r} cannot be decoded: {error}") from error


def installed_brokers() -> list[tuple[str, Callable[..., Broker]]]:
    """Every installed broker: its name, and the class of its options. Broken plugins are left out."""
    return [(entry.name, entry.make) for entry in registry().all("broker")]


def load_commands() -> dict[str, tuple[Callable[[], click.Command], str]]:
    """The commands of installed plugins: what makes each, and its line of help. A name that two plugins claim
    is written ``dist:name``."""
    entries = registry().all("command")
    claims = Counter(entry.name for entry in entries)
    return {entry.name if claims[entry.name] == 1 else entry.full_name: (entry.make, entry.help) for entry in entries}


def load_filter(name: str, *arguments: Any, **options: Any) -> Callable[[Any], bool]:
    """The message filter of that name, made with the given arguments. Raises: PluginError."""
    entry = registry().find("filter", name)
    made: Callable[[Any], bool] = _build(entry, *arguments, **options)
    if not callable(made):
        raise PluginError(
            f"the filter {name!r} of the plugin {entry.owner} is broken: its factory returned {made!r}, not a function"
        )
    return made


def load_retry_policy(name: str, **options: Any) -> RetryPolicy:
    """The retry policy of that name, made with the given options. Raises: PluginError."""
    from ._retry import RetryPolicy

    entry = registry().find("retry policy", name)
    made = _build(entry, **options)
    if not isinstance(made, RetryPolicy):
        raise PluginError(
            f"the retry policy {name!r} of the plugin {entry.owner} is broken: its factory returned {made!r}"
        )
    return made


def _build_serializer(entry: Entry) -> Serializer:
    made = _build(entry)
    if not isinstance(made, Serializer):
        raise PluginError(
            f"the serializer {entry.name!r} of the plugin {entry.owner} is broken: a {type(made).__name__} "
            "lacks something of amb_core.serializer.Serializer"
        )
    return made


def _build(entry: Entry, *arguments: Any, **options: Any) -> Any:
    try:
        return entry.make(*arguments, **options)
    except AmbError:
        raise
    except Exception as error:
        raise PluginError(
            f"the {entry.kind} {entry.name!r} of {entry.owner} could not be made: {type(error).__name__}: {error}"
        ) from error
