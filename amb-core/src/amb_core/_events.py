"""CloudEvents 1.0: what others send as events is understood, and ``envelope="cloudevents"`` sends them.

Above the wall an event's attributes are headers named ``ce-…``, whatever the protocol's binding calls them. The
bindings: github.com/cloudevents/spec; for AMQP 0-9-1, github.com/knative-extensions/eventing-rabbitmq.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

from ._message import CONTENT_TYPE, ID, SENDER, TIME, TRACEPARENT
from .broker import Incoming, Outgoing, is_inbox

_CE = "ce-"
SPECVERSION = "ce-specversion"
_TYPE, _SOURCE, _EVENT_ID, _EVENT_TIME, _KEY = "ce-type", "ce-source", "ce-id", "ce-time", "ce-partitionkey"
_VERSION = "1."
_STRUCTURED = "application/cloudevents+json"
#: An attribute among headers, in any binding. The specification allows these letters only.
_ATTRIBUTE = r"(?i:(ce-|ce_|cloudevents[:_])([a-z0-9]+))"
#: Printable ASCII but for space, quotation mark and percent sign (section 3.1.3.2 of the binding for HTTP).
_PRINTABLE = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
#: What a URI reference may contain as it is (RFC 3986).
_URI = "/:?#[]@!$&'()*+,;=-._~%"
_TRACE = (TRACEPARENT, "tracestate")
_SOURCELESS = "amb"


class Events:
    """CloudEvents as one broker carries them; `style` is ``Capabilities.cloudevents``."""

    def __init__(self, style: str) -> None:
        self._prefix, self._escaped = style.removesuffix("%"), style.endswith("%")
        #: What every event has that AMB has sent here, in the binding's own words.
        self.mark = f"{self._prefix}specversion"

    def read(self, incoming: Incoming) -> None:
        """Make an event's attributes ``ce-…`` headers, its data the body, and fill in the headers of AMB that it
        lacks. What is no event, or a broken one, stays as it is."""
        headers = incoming.headers
        # Others write it as HTTP does.
        kind = next((name for name in headers if name.lower() == CONTENT_TYPE), CONTENT_TYPE)
        if headers.get(kind, "").partition(";")[0].strip().lower() == _STRUCTURED:
            if not _read_structured(incoming):
                return
            del headers[kind]
        elif not self._read_binary(headers):
            return
        elif kind in headers:
            headers[CONTENT_TYPE] = headers.pop(kind)
        get = headers.get
        when = get(TIME) or _nanoseconds(get(_EVENT_TIME, ""))
        filled = {ID: get(_EVENT_ID), SENDER: get(_SOURCE), TIME: when, CONTENT_TYPE: get("ce-datacontenttype")}
        filled |= {name: get(_CE + name) for name in _TRACE}
        for name, value in filled.items():
            if value and name not in headers:
                headers[name] = value
        if incoming.key is None:
            incoming.key = get(_KEY)
        if not incoming.body and CONTENT_TYPE not in headers:
            incoming.body, headers[CONTENT_TYPE] = b"null", "application/json"

    def _read_binary(self, headers: dict[str, str]) -> bool:
        found = {name: match for name in headers if (match := re.fullmatch(_ATTRIBUTE, name))}
        version = next((headers[name] for name, match in found.items() if match[2].lower() == "specversion"), "")
        if not version.startswith(_VERSION):
            return False
        for name, match in found.items():
            value = headers.pop(name)
            headers[_CE + match[2].lower()] = _unquoted(value) if self._escaped and match[1].lower() == _CE else value
        return True

    def write(self, outgoing: Outgoing) -> None:
        """Make the message an event. The user's ``ce-…`` headers are its attributes; what they do not say comes from
        AMB's. Private replies stay as they are."""
        if is_inbox(outgoing.topic):
            return
        headers = outgoing.headers
        sender = headers.get(SENDER) or _SOURCELESS
        event = {SPECVERSION: "1.0", _TYPE: outgoing.topic, _SOURCE: _quoted(sender, _URI)}
        event |= {name: value for name, value in headers.items() if value and _is_attribute(name)}
        event |= {SPECVERSION: "1.0", _EVENT_ID: headers[ID], _EVENT_TIME: _rfc3339(headers[TIME])}
        event |= {_CE + name: headers[name] for name in _TRACE if name in headers}
        if outgoing.key is not None:
            event[_KEY] = outgoing.key
        # HTTP and NATS differ in where the type of the data is, so it is in both places.
        event |= {"ce-datacontenttype": headers[CONTENT_TYPE]} if self._escaped else {}
        headers.update(event)
        self.spell(headers)

    def spell(self, headers: dict[str, str]) -> None:
        """Name the ``ce-…`` headers of an event as the broker's binding does. What is no event stays as it is."""
        if not headers.get(SPECVERSION, "").startswith(_VERSION):
            return
        for name in [name for name in headers if name.startswith(_CE)]:
            value = headers.pop(name)
            headers[self._prefix + name[len(_CE) :]] = _quoted(value, _PRINTABLE) if self._escaped else value


def _read_structured(incoming: Incoming) -> bool:
    """An event whose attributes are in the body with the data (section 3 of the JSON event format)."""
    try:
        members = {
            name: bytes(raw) for name, raw in msgspec.json.decode(incoming.body, type=dict[str, msgspec.Raw]).items()
        }
        body = _data(members)
        attributes = {_CE + name: _text(raw) for name, raw in members.items() if raw != b"null"}
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return False
    if not attributes.get(SPECVERSION, "").startswith(_VERSION):
        return False
    incoming.headers.update(attributes)
    incoming.headers.setdefault("ce-datacontenttype", "application/json")
    incoming.body = body
    return True


def _is_attribute(header: str) -> bool:
    """Whether it is the user's header for an attribute. Raises: ValueError for one that no event can have."""
    if not header.startswith(_CE):
        return False
    if re.fullmatch("[a-z0-9]+", header[len(_CE) :]):
        return True
    raise ValueError(f"header {header!r} is no attribute of CloudEvents: after 'ce-' use lower-case letters and digits")


def _data(members: dict[str, bytes]) -> bytes:
    """The data, taken out of the members. JSON stays as it was written; text of another type is itself."""
    data, encoded = members.pop("data", None), members.pop("data_base64", None)
    if encoded is not None:
        return msgspec.json.decode(encoded, type=bytes)
    if data is None:
        return b"null"
    kind = _text(members.get("datacontenttype", b'"json"')).partition(";")[0].strip().lower()
    if not kind.endswith("json") and data.startswith(b'"'):
        return msgspec.json.decode(data, type=str).encode()
    return data


def _text(raw: bytes) -> str:
    """The canonical form of an attribute (section "Type System"). Raises: msgspec.MsgspecError."""
    value = msgspec.json.decode(raw, type=str | int | bool)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nanoseconds(time: str) -> str | None:
    if re.fullmatch("[0-9]{1,16}", time):  # AMQP's own timestamp: milliseconds
        return f"{time}000000"
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return None
    whole = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).replace(microsecond=0).timestamp())
    return str(whole * 10**9 + moment.microsecond * 1000)


def _rfc3339(nanoseconds: str) -> str:
    whole, rest = divmod(int(nanoseconds), 10**9)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def _quoted(value: str, safe: str) -> str:
    from urllib.parse import quote  # slow to import, and wanted for events only

    return quote(value, safe=safe)


def _unquoted(value: str) -> str:
    from urllib.parse import unquote

    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        return value
