"""Which broker a bus uses, and where its options come from: argument > URL query > environment > default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ._advice import SCHEMES, did_you_mean
from ._plugins import registry
from ._registry import Entry
from ._retry import DeadLetterQueue
from .broker import Broker
from .config import is_secret, mask_url
from .errors import ConfigurationError, PluginError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def resolve_broker(
    broker: str | Broker | None,
    broker_url: str | None = None,
    environ: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
) -> Broker:
    """The broker for what a user gave: a name, a URL, an object, or nothing.

    An object is taken as it is. Nothing means ``AMB_BROKER``, which may be a name or a URL, else memory.
    `options` are arguments by name; they win over the URL's query, ``AMB_<BROKER>_<OPTION>`` and defaults.
    Touches no network. Raises: PluginError for a broker that cannot be had; ConfigurationError naming the
    option, parameter or variable; TypeError for an object that is no broker.
    """
    environ = os.environ if environ is None else environ
    if broker is not None and not isinstance(broker, str):
        return _given(broker, broker_url, options)
    entry, url = _choose(broker, broker_url, environ)
    return build_broker(entry, url, environ, options or {})


def resolve_dead_letters(given: DeadLetterQueue | str | None, broker: Broker) -> DeadLetterQueue | None:
    """Where dead letters go: what the bus was given, else what the broker's options say: the topic
    (``dead_letter_queue``), and after how many deliveries (``max_receive_count``)."""
    queue = given or getattr(broker, "dead_letter_queue", None)
    if not isinstance(queue, str):
        return queue
    deliveries = None if given else getattr(broker, "max_receive_count", None)
    return DeadLetterQueue(queue) if deliveries is None else DeadLetterQueue(queue, max_retries=deliveries - 1)


def _given(broker: Broker, broker_url: str | None, options: Mapping[str, object] | None) -> Broker:
    name = type(broker).__name__
    if isinstance(broker, type):
        raise TypeError(f"{broker.__name__} is a class: give the bus an instance, {broker.__name__}(...)")
    missing = [part for part in ("capabilities", "connect") if not hasattr(broker, part)]
    if missing:
        raise TypeError(
            f"a {name} is no broker, it has no {' and no '.join(missing)}: give a name such as 'redis', a URL, "
            "or an object as amb_core.broker.Broker describes"
        )
    if broker_url is not None or options:
        raise TypeError(f"a {name} object already has its options: give broker_url only together with a broker's name")
    return broker


def _choose(broker: str | None, url: str | None, environ: Mapping[str, str]) -> tuple[Entry, str | None]:
    if broker is None and url is not None:
        by_scheme = _by_scheme(url)
        if by_scheme is not None:
            return by_scheme, url
    source = "broker"
    if broker is None:
        broker, source = environ.get("AMB_BROKER") or "memory", "AMB_BROKER"
        if url is not None and (broker == "memory" or _URL.match(broker)):
            raise ConfigurationError(
                f"no broker is known for broker_url {mask_url(url)!r}: name it as well, as in broker='redis'"
            )
    broker = broker.strip()
    if not _URL.match(broker):
        return _by_name(broker, url), url
    if url is not None:
        raise ConfigurationError(f"{source} {mask_url(broker)!r} is a URL already: give it or broker_url, not both")
    entry = _by_scheme(broker)
    if entry is None:
        scheme = broker.partition("://")[0]
        known = sorted({*SCHEMES, *(alias for e in registry().all("broker") for alias in (e.name, *e.aliases))})
        raise PluginError(f"no installed broker has the URL scheme {scheme!r}{did_you_mean(scheme, known)}")
    return entry, broker


def _by_name(name: str, url: str | None) -> Entry:
    entry = registry().find("broker", name.lower())
    scheme = _URL.match(url or "")
    meant = SCHEMES.get(scheme[1].lower(), entry.name) if scheme else entry.name
    if scheme is not None and meant != entry.name and scheme[1].lower() not in entry.aliases:
        raise ConfigurationError(
            f"broker_url {mask_url(url or '')!r} is for the broker {meant!r}, but the broker is {name!r}"
        )
    return entry


def _by_scheme(url: str) -> Entry | None:
    match = _URL.match(url)
    if match is None:
        return None
    scheme = match[1].lower()
    if scheme in SCHEMES:
        return registry().find("broker", SCHEMES[scheme])
    return registry().seek_alias("broker", scheme)


class _Value(msgspec.Struct, frozen=True):
    """An option's value and where it came from."""

    value: object
    source: str


def build_broker(entry: Entry, url: str | None, environ: Mapping[str, str], options: Mapping[str, object]) -> Broker:
    """The broker `entry` describes, with its options gathered. Raises: ConfigurationError."""
    fields = {field.name: field for field in msgspec.structs.fields(entry.make)}  # type: ignore[arg-type]
    values = dict(_from_environment(entry, fields, environ))
    if url is not None:
        values.update(_from_url(entry, fields, url))
    for name, value in options.items():
        _refuse_unknown(entry, fields, name, f"option {name!r}")
        values[name] = _Value(value, f"option {name!r}")
    given = {name: _converted(entry, fields[name], value) for name, value in values.items()}
    missing = [name for name, field in fields.items() if field.required and name not in given]
    if missing:
        raise ConfigurationError(
            f"the {entry.name} broker needs the option {missing[0]!r}: pass it, or set {_variable(entry, missing[0])}"
        )
    made: Broker = entry.make(**given)
    return made


def _from_environment(
    entry: Entry, fields: Mapping[str, msgspec.structs.FieldInfo], environ: Mapping[str, str]
) -> Iterator[tuple[str, _Value]]:
    _refuse_misspelt(entry, fields, environ)
    for name in fields:
        for variable in (_variable(entry, name), (entry.env or {}).get(name, "")):
            if environ.get(variable):
                yield name, _Value(environ[variable], variable)
                break


def _refuse_misspelt(entry: Entry, fields: Mapping[str, object], environ: Mapping[str, str]) -> None:
    """Others may own variables that begin like ours (container platforms set some for every service), so only
    what is nearly an option counts as a misspelt one."""
    known = {_variable(entry, name) for name in fields} | set((entry.env or {}).values())
    for variable in environ:
        if variable.startswith(_variable(entry, "")) and variable not in known:
            from difflib import get_close_matches

            close = get_close_matches(variable, known, n=1, cutoff=0.9)
            if close:
                raise ConfigurationError(
                    f"{variable} is no option of the {entry.name} broker; did you mean {close[0]}?"
                )


def _variable(entry: Entry, field: str) -> str:
    return f"AMB_{entry.name}_{field}".upper().replace("-", "_")


def _from_url(entry: Entry, fields: Mapping[str, msgspec.structs.FieldInfo], url: str) -> Iterator[tuple[str, _Value]]:
    address = url
    if _URL.match(url):
        from urllib.parse import parse_qsl

        address, _, query = url.partition("?")
        seen: set[str] = set()
        for name, text in parse_qsl(query, keep_blank_values=True):
            source = f"URL parameter {name!r}"
            _refuse_unknown(entry, fields, name, source)
            if name in seen or name == entry.url_option:
                raise ConfigurationError(f"{source} of the {entry.name} broker is given twice in {mask_url(url)!r}")
            seen.add(name)
            yield name, _Value(text, source)
    if entry.url_option in fields:
        yield entry.url_option, _Value(address, "the URL")
    elif address.partition("://")[2].strip("/"):
        raise ConfigurationError(f"the {entry.name} broker has no address, and takes no {mask_url(address)!r}")


def _refuse_unknown(entry: Entry, fields: Mapping[str, object], name: str, source: str) -> None:
    if name not in fields:
        guess = did_you_mean(name, fields)
        raise ConfigurationError(
            f"{source} is no option of the {entry.name} broker{guess}; its options: {', '.join(fields)}"
        )


def _converted(entry: Entry, field: msgspec.structs.FieldInfo, given: _Value) -> object:
    try:
        return (
            _from_text(given.value, field.type)
            if isinstance(given.value, str)
            else msgspec.convert(given.value, field.type)
        )
    except (msgspec.MsgspecError, ValueError) as error:
        shown = "" if is_secret(field.type) else f" (given: {mask_url(str(given.value))!r})"
        raise ConfigurationError(f"{given.source} of the {entry.name} broker: {error}{shown}") from None


_TRUTH = {"yes": True, "on": True, "no": False, "off": False}


def _from_text(text: str, type: Any) -> object:
    """A value of `type` as written in a URL or variable: booleans as true/false, yes/no, on/off or 1/0, lists
    with commas between or as JSON, everything nested as JSON."""
    kinds = _kinds(msgspec.inspect.type_info(type))
    if msgspec.inspect.StrType in kinds or msgspec.inspect.AnyType in kinds:
        return (
            msgspec.convert(text, type, strict=False)
            if not _nested(text, kinds)
            else msgspec.json.decode(text, type=type, strict=False)
        )
    if text.lstrip()[:1] in ("{", "["):
        return msgspec.json.decode(text, type=type, strict=False)
    if kinds & {
        msgspec.inspect.ListType,
        msgspec.inspect.VarTupleType,
        msgspec.inspect.SetType,
        msgspec.inspect.FrozenSetType,
    }:
        return msgspec.convert([part.strip() for part in text.split(",") if part.strip()], type, strict=False)
    if msgspec.inspect.BoolType in kinds:
        return msgspec.convert(_TRUTH.get(text.strip().lower(), text), type, strict=False)
    return msgspec.convert(text, type, strict=False)


def _nested(text: str, kinds: set[type]) -> bool:
    """Whether text is JSON for the part of a type that is no text."""
    return text.startswith("{") and msgspec.inspect.StructType in kinds


def _kinds(info: msgspec.inspect.Type) -> set[type]:
    if isinstance(info, msgspec.inspect.UnionType):
        return set().union(*map(_kinds, info.types))
    return _kinds(info.type) if isinstance(info, msgspec.inspect.Metadata) else {type(info)}
