"""What an agent sends, in the form in which it is checked and sent."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from amb_core import Message
from amb_core.topics import validate_topic

from ._governor import ROLES
from ._identity import Identity


def held_fast(given: object) -> tuple[str, str | Message]:
    """The topic, and what to send to it: what is checked and what is sent are the same, whatever an agent does to it
    meanwhile, or has made it say of itself."""
    if isinstance(given, Message) and type(given) is not Message:
        raise TypeError(f"the kernel sends a Message itself, not a {type(given).__name__}: make one of its fields")
    topic = given.topic if isinstance(given, Message) else given
    if not isinstance(topic, str):
        raise TypeError("sending needs a topic and a message: publish('topic', {'key': 'value'})")
    topic = str.__str__(topic)
    validate_topic(topic)
    if not isinstance(given, Message):
        return topic, topic
    own = copy(given)
    own.topic = topic
    return topic, own


def sign(who: Identity, message: object, options: dict[str, Any]) -> None:
    """Put the agent's name and roles on what it sends, and nobody else's."""
    if options.get("sender", who.name) != who.name:
        raise ValueError(f"{who.name!r} sends under its own name, not as {options['sender']!r}: leave sender out")
    headers: Mapping[str, str] | None = options.get("headers")
    if headers is not None and any(map(_is_roles, headers)):
        raise ValueError(f"the header {ROLES!r} is the kernel's: give roles to the agent instead")
    inherited = message.headers if isinstance(message, Message) else {}
    given = inherited if headers is None else headers
    own = {name: text for name, text in given.items() if not _is_roles(name)}
    options["headers"] = own | ({ROLES: ",".join(who.roles)} if who.roles else {})
    options["sender"] = who.name


def _is_roles(header: str) -> bool:
    """Not every broker tells capitals from small letters."""
    return isinstance(header, str) and str.lower(header) == ROLES
