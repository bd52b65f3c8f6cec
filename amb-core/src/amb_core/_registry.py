"""Everything plugins register, and which of them to load for a name.

Only the entry point that is named is imported. By convention its name is the name of what it provides; when no
entry point has the name that is asked for, the remaining ones are loaded too before giving up.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from ._advice import INSTALL, did_you_mean
from .errors import PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import pluggy

Kind: TypeAlias = Literal["broker", "serializer", "filter", "retry policy", "command"]
_HOOKS: dict[Kind, str] = {
    "broker": "amb_register_brokers",
    "serializer": "amb_register_serializers",
    "filter": "amb_register_filters",
    "retry policy": "amb_register_retry_policies",
    "command": "amb_register_commands",
}
_OPTIONS: dict[Kind, set[str]] = {
    "broker": {"schemes", "url_option", "env"},
    "serializer": {"content_types"},
    "command": {"help"},
}
#: The owner of what AMB brings itself, written as ``dist:entry`` like anybody's.
BUILTIN = "amb-core:builtins"


class Entry(msgspec.Struct, frozen=True):
    """Something a plugin registered."""

    kind: Kind
    name: str
    #: The options struct of a broker, else a factory.
    make: Callable[..., Any]
    #: ``dist:entry`` of the plugin.
    owner: str
    #: A broker's URL schemes, or a serializer's content types.
    aliases: tuple[str, ...] = ()
    url_option: str = "url"
    env: Mapping[str, str] | None = None
    help: str = ""

    @property
    def full_name(self) -> str:
        """``dist:name``, which nobody else can claim."""
        return f"{self.owner.partition(':')[0]}:{self.name}"


def _installed() -> Iterable[EntryPoint]:
    # Slow to import, and only looked at when a name is resolved.
    from importlib.metadata import entry_points

    return entry_points(group="amb")


class Registry:
    """Everything registered so far, and the entry points that can still be loaded. One per process."""

    def __init__(self, find: Callable[[], Iterable[EntryPoint]] = _installed) -> None:
        self._find = find
        self._manager: pluggy.PluginManager | None = None
        self._entries: list[Entry] = []
        self._draft: list[Entry] = []
        self._owner = BUILTIN
        self._waiting: dict[str, list[EntryPoint]] = {}
        #: Plugins that are installed but broken, by ``dist:entry``.
        self.failures: dict[str, PluginError] = {}

    def find(self, kind: Kind, name: str) -> Entry:
        """What is registered under `name`, a name or ``dist:name``, loading the plugin that provides it.

        Raises: PluginError: unknown, not installed, broken, or claimed twice.
        """
        found = self.seek(kind, name)
        if found is None:
            raise self._unknown(kind, name)
        return found

    def seek(self, kind: Kind, name: str) -> Entry | None:
        """As `find`, but None if there is nothing of that name, not even in plugins loaded in search of it."""
        dist, _, short = name.rpartition(":")
        return self._search(kind, short, _canonical(dist), lambda entry: entry.name == short)

    def seek_alias(self, kind: Kind, alias: str) -> Entry | None:
        """The entry with this URL scheme or content type, or None. Raises as `find`."""
        return self._search(kind, alias, "", lambda entry: alias in entry.aliases or alias == entry.name)

    def all(self, kind: Kind) -> list[Entry]:
        """Everything installed of this kind, by name. Plugins that are broken are in `failures`."""
        self._load_rest()
        return sorted(
            (entry for entry in self._entries if entry.kind == kind), key=lambda entry: (entry.name, entry.owner)
        )

    def _search(self, kind: Kind, name: str, dist: str, fits: Callable[[Entry], bool]) -> Entry | None:
        self._start()

        def loaded() -> list[Entry]:
            return [e for e in self._entries if e.kind == kind and fits(e) and dist in ("", e.owner.partition(":")[0])]

        found = loaded()
        if found and found[0].owner == BUILTIN:
            return found[0]
        named = [point for point in self._waiting.get(name, ()) if dist in ("", _dist(point))]
        if len(named) > 1 and not dist:
            # An entry point's name may serve another kind of thing: only loading it tells.
            self._load(named, strict=False)
        else:
            self._load(named, strict=not found)
        found = loaded()
        if not found:
            self._load_rest(dist)
            found = loaded()
        if len(found) > 1:
            raise _claimed_twice(kind, name, found)
        return found[0] if found else None

    def _start(self) -> None:
        if self._manager is not None:
            return
        import pluggy

        from . import _builtins, hookspecs

        self._manager = pluggy.PluginManager("amb")
        self._manager.add_hookspecs(hookspecs)
        if os.environ.get("AMB_TRACE_PLUGINS") == "1":
            self._manager.trace.root.setwriter(lambda text: sys.stderr.write(f"amb: {text}"))
            self._manager.enable_tracing()
        for kind, hook in _HOOKS.items():
            getattr(self._manager.hook, hook).call_historic(kwargs={"register": self._register_for(kind)})
        self._register_module(_builtins, BUILTIN)
        for point in self._find():
            self._waiting.setdefault(point.name, []).append(point)

    def _load_rest(self, dist: str = "") -> None:
        self._start()
        self._load([p for points in self._waiting.values() for p in points if dist in ("", _dist(p))], strict=False)

    def _load(self, points: Sequence[EntryPoint], *, strict: bool) -> None:
        """Load the entry points; a broken one is kept in `failures`, and raises if `strict`."""
        for point in points:
            owner = f"{_dist(point)}:{point.name}"
            if owner not in self.failures:
                try:
                    self._load_one(point, owner)
                except PluginError as error:
                    self.failures[owner] = error
                else:
                    self._waiting[point.name].remove(point)
            if strict and owner in self.failures:
                raise self.failures[owner]

    def _load_one(self, point: EntryPoint, owner: str) -> None:
        try:
            module = point.load()
        except Exception as error:
            raise PluginError(
                f"the plugin {owner} is installed but cannot be loaded: {type(error).__name__}: {error}. "
                f"Reinstall or upgrade {_dist(point)}, or uninstall it"
            ) from error
        self._register_module(module, owner)

    def _register_module(self, module: ModuleType, owner: str) -> None:
        manager = self._manager
        assert manager is not None
        # One module may stand behind several entry points.
        if manager.is_registered(module):
            return
        self._owner, self._draft = owner, []
        try:
            _refuse_unmarked(module, owner)
            manager.register(module, name=owner)
            manager.check_pending()
            self._refuse_taken(owner)
        except Exception as error:
            if manager.has_plugin(owner):
                manager.unregister(name=owner)
            raise (
                error
                if isinstance(error, PluginError)
                else PluginError(
                    f"the plugin {owner} is installed but broken: {error}. Upgrade it, or tell its authors"
                )
            ) from error
        self._entries += self._draft

    def _refuse_taken(self, owner: str) -> None:
        taken = {(entry.kind, entry.name) for entry in self._entries if entry.owner == BUILTIN}
        for entry in self._draft:
            if (entry.kind, entry.name) in taken:
                raise PluginError(
                    f"the plugin {owner} registers the {entry.kind} {entry.name!r}, a name that belongs to AMB itself"
                )

    def _register_for(self, kind: Kind) -> Callable[..., None]:
        """The `register` function that a plugin gets for `kind`."""

        def register(name: str, make: Callable[..., Any], **options: Any) -> None:
            if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
                raise ValueError(f"{name!r} is no name for a {kind}: use lower-case letters, digits, '-' and '_'")
            if options.keys() - _OPTIONS.get(kind, set()):
                raise TypeError(
                    f"a {kind} is registered with the options {_OPTIONS.get(kind, set())}, not {set(options)}"
                )
            if kind == "broker":
                _check_broker(name, make, options)
            aliases = tuple(alias.lower() for alias in (*options.pop("schemes", ()), *options.pop("content_types", ())))
            self._draft.append(Entry(kind, name, make, self._owner, aliases, **options))

        return register

    def _unknown(self, kind: Kind, name: str) -> PluginError:
        installed = [entry.name for entry in self.all(kind)]
        dist = INSTALL.get(kind, {}).get(name)
        if dist is not None:
            text = f"the {kind} {name!r} is not installed: pip install {dist}"
        else:
            guess = did_you_mean(name, [*installed, *INSTALL.get(kind, {})])
            text = f"no {kind} is called {name!r}{guess}; installed: {', '.join(dict.fromkeys(installed)) or 'none'}"
        broken = "; ".join(map(str, self.failures.values()))
        error = PluginError(f"{text}. Could not be searched: {broken}" if broken else text)
        error.__cause__ = next(iter(self.failures.values()), None)
        return error


def _check_broker(name: str, make: object, options: Mapping[str, Any]) -> None:
    if not (isinstance(make, type) and issubclass(make, msgspec.Struct)):
        raise TypeError(f"the broker {name!r} must be a msgspec.Struct class of its options, not {make!r}")
    named = {*(options.get("env") or ()), *([options["url_option"]] if "url_option" in options else ())}
    missing = named - set(make.__struct_fields__)
    if missing:
        raise ValueError(
            f"the broker {name!r} is registered with options that {make.__name__} lacks: {', '.join(sorted(missing))}"
        )


def _dist(point: EntryPoint) -> str:
    return _canonical(point.dist.name) if point.dist is not None else "unknown"


def _canonical(dist: str) -> str:
    return re.sub(r"[-_.]+", "-", dist).lower()


def _refuse_unmarked(plugin: object, owner: str) -> None:
    members = [getattr(plugin, name) for name in dir(plugin) if name.startswith("amb_register")]
    forgotten = [member for member in members if not hasattr(member, "amb_impl") and not hasattr(member, "amb_spec")]
    if forgotten:
        raise _broken(owner, f"put @hookimpl above its function {forgotten[0].__name__!r}")
    if not any(hasattr(getattr(plugin, name), "amb_impl") for name in dir(plugin)):
        raise _broken(
            owner, "it has no hooks: an entry point of the group 'amb' names a module with @hookimpl functions"
        )


def _broken(owner: str, why: object) -> PluginError:
    return PluginError(f"the plugin {owner} is installed but broken: {why}. Upgrade it, or tell its authors")


def _claimed_twice(kind: Kind, name: str, found: Sequence[Entry]) -> PluginError:
    choices = [entry.full_name for entry in found]
    return PluginError(f"the {kind} {name!r} is claimed by {' and '.join(entry.owner for entry in found)}: "
                       f"uninstall one, or choose by its full name, {' or '.join(map(repr, choices))}")  # fmt: skip
