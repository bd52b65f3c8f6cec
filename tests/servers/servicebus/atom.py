"""Descriptions of entities as XML, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar, cast
from xml.etree.ElementTree import Element, ParseError, fromstring
from xml.sax.saxutils import escape

import msgspec

from .entry import QueueOptions, Refusal
from .topics import Rule, TopicOptions

_SB = "{http://schemas.microsoft.com/netservices/2010/10/servicebus/connect}"
_ATOM = "{http://www.w3.org/2005/Atom}"
_XSI = "{http://www.w3.org/2001/XMLSchema-instance}"
_COUNTS = "http://schemas.microsoft.com/netservices/2011/06/servicebus"
_EVER = "P10675199DT2H48M5.4775807S"
#: Where "for ever" begins; the clients write it in more than one way.
_EVER_SECONDS = 1e11
_LONG_AGO = "0001-01-01T00:00:00Z"
_DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")
#: What changes nothing that a client of the emulator could see.
_HARMLESS = {"EnableBatchedOperations", "EnableExpress", "EnablePartitioning", "MaxSizeInMegabytes", "SupportOrdering",
             "DeadLetteringOnFilterEvaluationExceptions", "FilteringMessagesBeforePublishing", "IsAnonymousAccessible",
             "EntityAvailabilityStatus", "CreatedAt", "UpdatedAt", "AccessedAt", "MessageCount", "SizeInBytes",
             "CountDetails", "SubscriptionCount"}  # fmt: skip
_SYSTEM = {
    "CorrelationId": "correlation-id", "MessageId": "message-id", "To": "to", "ReplyTo": "reply-to", "Label": "label",
    "SessionId": "session-id", "ReplyToSessionId": "reply-to-session-id", "ContentType": "content-type",
}  # fmt: skip
_MIN_IDLE = _MAX_LOCK = 300.0
_READ: dict[str, Callable[[str], object]] = {
    "string": str, "int": int, "long": int, "double": float, "boolean": lambda text: text == "true",
}  # fmt: skip


def description(document: bytes) -> Element:
    """The description in an entry. Raises: Refusal."""
    try:
        content = fromstring(document).find(f"{_ATOM}content")
    except ParseError as error:
        raise _wrong(f"The body is no XML: {error}.") from error
    if content is None or not len(content):
        raise _wrong("The entry has no content.")
    return content[0]


def kind(element: Element) -> str:
    """``QueueDescription`` and the like."""
    return element.tag.removeprefix(_SB)


def queue_options(element: Element) -> QueueOptions:
    """A queue's or a subscription's properties. Raises: Refusal."""
    return _options(element, QueueOptions)


def topic_options(element: Element) -> TopicOptions:
    """A topic's properties. Raises: Refusal."""
    return _options(element, TopicOptions)


def rule_filter(element: Element) -> dict[str, object]:
    """A rule's filter. Raises: Refusal."""
    action = element.find(f"{_SB}Action")
    if action is not None and action.get(f"{_XSI}type") != "EmptyRuleAction":
        raise _wrong("Actions of rules are not emulated.")
    given = element.find(f"{_SB}Filter")
    kind = None if given is None else given.get(f"{_XSI}type")
    if given is None or kind not in ("SqlFilter", "CorrelationFilter", "TrueFilter", "FalseFilter"):
        raise _wrong("The rule has no filter that is known.")
    if kind == "SqlFilter":
        sql = given.findtext(f"{_SB}SqlExpression", "")
        return {"sql": sql, "parameters": _values(given.find(f"{_SB}Parameters"))}
    if kind == "CorrelationFilter":
        texts = {key: given.findtext(f"{_SB}{tag}") for tag, key in _SYSTEM.items()}
        properties = _values(given.find(f"{_SB}Properties"))
        return {"correlation": {key: text for key, text in texts.items() if text} | {"properties": properties}}
    return {"false" if kind == "FalseFilter" else "true": True}


def describe_queue(kind: str, options: QueueOptions, counts: Mapping[str, int]) -> str:
    """``QueueDescription`` or ``SubscriptionDescription``."""
    values = {
        "LockDuration": _written(options.lock_duration),
        "RequiresSession": _bool(options.requires_session),
        "DefaultMessageTimeToLive": _written(options.ttl),
        "DeadLetteringOnMessageExpiration": _bool(options.dead_letter_on_expiration),
        "MaxDeliveryCount": str(options.max_delivery_count),
        "AutoDeleteOnIdle": _written(options.auto_delete_on_idle),
        "MessageCount": str(sum(counts.values())),
    } | _duplicates(kind, options.duplicate_window)
    return _element(kind, values, options.user_metadata, counts)


def describe_topic(options: TopicOptions, subscriptions: int, counts: Mapping[str, int]) -> str:
    """``TopicDescription``."""
    values = {
        "DefaultMessageTimeToLive": _written(options.ttl),
        "AutoDeleteOnIdle": _written(options.auto_delete_on_idle),
        "SubscriptionCount": str(subscriptions),
    } | _duplicates("TopicDescription", options.duplicate_window)
    return _element("TopicDescription", values, options.user_metadata, counts)


def describe_rule(rule: Rule) -> str:
    """``RuleDescription``."""
    given = rule.given
    if "correlation" in given:
        wanted = dict(cast("Mapping[str, object]", given["correlation"]))
        properties = cast("Mapping[str, object]", wanted.pop("properties", None) or {})
        tags = {key: tag for tag, key in _SYSTEM.items()}
        inside = "".join(f"<{tags[key]}>{escape(str(value))}</{tags[key]}>" for key, value in wanted.items())
        shown = _filter("CorrelationFilter", inside + f"<Properties>{_pairs(properties)}</Properties>")
    elif "sql" in given:
        parameters = cast("Mapping[str, object]", given.get("parameters") or {})
        shown = _filter("SqlFilter", _sql(str(given["sql"])) + f"<Parameters>{_pairs(parameters)}</Parameters>")
    else:
        shown = _filter("FalseFilter", _sql("1=0")) if "false" in given else _filter("TrueFilter", _sql("1=1"))
    action = '<Action i:type="EmptyRuleAction"/>'
    name = f"<CreatedAt>{_LONG_AGO}</CreatedAt><Name>{escape(rule.name)}</Name>"
    return f"<RuleDescription {_NAMESPACES}>{shown}{action}{name}</RuleDescription>"


def describe_namespace(name: str) -> str:
    """``NamespaceInfo``."""
    return f"<NamespaceInfo {_NAMESPACES}><MessagingSKU>Standard</MessagingSKU><Name>{name}</Name></NamespaceInfo>"


def entry(name: str, url: str, content: str) -> str:
    """One entity."""
    return (
        f'<entry xmlns="{_ATOM[1:-1]}"><id>{escape(url)}</id><title type="text">{escape(name)}</title>'
        f"<published>{_LONG_AGO}</published><updated>{_LONG_AGO}</updated>"
        f'<link rel="self" href="{escape(url)}"/><content type="application/xml">{content}</content></entry>'
    )


def feed(entries: Iterable[str], url: str, following: str | None) -> str:
    """Several entities; `following` is where the next ones are."""
    more = f'<link rel="next" href="{escape(following)}"/>' if following else ""
    return (
        f'<feed xmlns="{_ATOM[1:-1]}"><title type="text">Entities</title><id>{escape(url)}</id>'
        f'<updated>{_LONG_AGO}</updated><link rel="self" href="{escape(url)}"/>{more}{"".join(entries)}</feed>'
    )


def failure(status: int, detail: str) -> str:
    """Why not."""
    return f"<Error><Code>{status}</Code><Detail>{escape(detail)}</Detail></Error>"


_NAMESPACES = f'xmlns="{_SB[1:-1]}" xmlns:i="{_XSI[1:-1]}"'
T = TypeVar("T", bound=msgspec.Struct)


def _options(element: Element, kind: type[T]) -> T:
    """The properties that the emulator acts on; what it neither acts on nor may leave alone is refused."""
    given = {child.tag.removeprefix(_SB): child.text or "" for child in element}
    detects = given.pop("RequiresDuplicateDetection", "false") == "true"
    window = _seconds(given.pop("DuplicateDetectionHistoryTimeWindow", "PT10M"))
    found: dict[str, object] = {"duplicate_window": window if detects else None}
    if given.pop("Status", "Active") != "Active":
        raise _wrong("Only the status Active is emulated.")
    for tag, text in given.items():
        name, read = _PROPERTIES.get(tag, ("", str))
        if name in kind.__struct_fields__:
            found[name] = read(text)
        elif tag not in _HARMLESS:
            raise _wrong(f"{tag} is not emulated for {element.tag.removeprefix(_SB)}.")
    idle, lock = found.get("auto_delete_on_idle"), found.get("lock_duration")
    if isinstance(idle, float) and idle < _MIN_IDLE:
        raise _wrong("AutoDeleteOnIdle must be five minutes at least.")
    if isinstance(lock, float) and lock > _MAX_LOCK:
        raise _wrong("LockDuration must be five minutes at most.")
    return msgspec.convert(found, kind)


def _seconds(text: str) -> float | None:
    """A duration, None for ever."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise _wrong(f"'{text}' is no duration.")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return None if total > _EVER_SECONDS else total


_PROPERTIES: dict[str, tuple[str, Callable[[str], object]]] = {
    "LockDuration": ("lock_duration", _seconds),
    "MaxDeliveryCount": ("max_delivery_count", int),
    "DefaultMessageTimeToLive": ("ttl", _seconds),
    "DeadLetteringOnMessageExpiration": ("dead_letter_on_expiration", lambda text: text == "true"),
    "RequiresSession": ("requires_session", lambda text: text == "true"),
    "AutoDeleteOnIdle": ("auto_delete_on_idle", _seconds),
    "UserMetadata": ("user_metadata", str),
}


def _values(parent: Element | None) -> dict[str, object]:
    found: dict[str, object] = {}
    for pair in parent if parent is not None else ():
        value = pair.find(f"{_SB}Value")
        kind = "" if value is None else value.get(f"{_XSI}type", "").rpartition(":")[2]
        if value is None or kind not in _READ:
            raise _wrong(f"A value of the type '{kind}' is not emulated.")
        found[pair.findtext(f"{_SB}Key", "")] = _READ[kind](value.text or "")
    return found


def _pairs(values: Mapping[str, object]) -> str:
    names = {str: "string", int: "long", float: "double", bool: "boolean"}
    return "".join(
        f"<KeyValueOfstringanyType><Key>{escape(key)}</Key>"
        f'<Value i:type="d:{names[type(value)]}" xmlns:d="http://www.w3.org/2001/XMLSchema">'
        f"{_bool(value) if isinstance(value, bool) else escape(str(value))}</Value></KeyValueOfstringanyType>"
        for key, value in values.items()
    )


def _filter(kind: str, inside: str) -> str:
    return f'<Filter i:type="{kind}">{inside}</Filter>'


def _sql(text: str) -> str:
    return f"<SqlExpression>{escape(text)}</SqlExpression><CompatibilityLevel>20</CompatibilityLevel>"


def _duplicates(kind: str, window: float | None) -> dict[str, str]:
    if kind == "SubscriptionDescription":
        return {}
    return {
        "RequiresDuplicateDetection": _bool(window is not None),
        "DuplicateDetectionHistoryTimeWindow": _written(window or 600.0),
    }


def _element(kind: str, values: Mapping[str, str], metadata: str | None, counts: Mapping[str, int]) -> str:
    inside = "".join(f"<{tag}>{text}</{tag}>" for tag, text in values.items())
    numbers = "".join(f'<{tag} xmlns="{_COUNTS}">{count}</{tag}>' for tag, count in counts.items())
    times = "".join(f"<{tag}>{_LONG_AGO}</{tag}>" for tag in ("CreatedAt", "UpdatedAt", "AccessedAt"))
    own = "" if metadata is None else f"<UserMetadata>{escape(metadata)}</UserMetadata>"
    status = "<Status>Active</Status><EntityAvailabilityStatus>Available</EntityAvailabilityStatus>"
    return f"<{kind} {_NAMESPACES}>{inside}{status}{times}<CountDetails>{numbers}</CountDetails>{own}</{kind}>"


def _written(seconds: float | None) -> str:
    return _EVER if seconds is None else f"PT{seconds:.3f}S"


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _wrong(detail: str) -> Refusal:
    return Refusal("com.microsoft:argument-error", detail, 400)
