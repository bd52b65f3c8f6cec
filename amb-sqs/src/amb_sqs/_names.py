"""Topics, patterns and groups as names of queues, and back. Pure functions; the names are described for other
languages in ``docs/brokers/sqs.md``."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

__all__ = ["EXPRESS", "Names", "digest", "escape", "pattern_tags", "stand_in", "tagged_pattern", "unescape"]

#: Between pattern and group. Doubled: not a group's name follows, but a letter (see `Names`) and a hash. Neither can
#: be a part of what is escaped.
_GROUP, _OTHER = "-_", "-_-_"
#: At the end of the name of an express lane.
EXPRESS = "-_x"
_LONGEST = 80
_PLAIN = re.compile(r"[^A-Za-z0-9.]")
_ESCAPE = re.compile(r"_|--|(?:-[0-9A-F]{2})+|-")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9_]|--|-[0-9A-F]{2})*")
#: A tag's value has 256 letters.
_TAG, _PIECE = "amb-pattern-", 240


def digest(*parts: str) -> str:
    """A short name for a long one."""
    return blake2b("\0".join(parts).encode(), digest_size=10).hexdigest()


@lru_cache(maxsize=4096)
def escape(text: str) -> str:
    """Text in the letters that names of queues may have: ``.`` is ``_``, ``-`` is ``--``, others ``-XX`` (UTF-8)."""

    def one(match: re.Match[str]) -> str:
        return "--" if match[0] == "-" else "".join(f"-{byte:02X}" for byte in match[0].encode())

    return _PLAIN.sub(one, text).replace(".", "_")


def unescape(text: str) -> str | None:
    """What was escaped. None: nothing that `escape` makes."""

    def one(match: re.Match[str]) -> str:
        if match[0] in ("_", "--"):
            return "." if match[0] == "_" else "-"
        return bytes.fromhex(match[0].replace("-", "")).decode()

    try:
        plain = _ESCAPE.sub(one, text)
    except ValueError:
        return None
    return plain if escape(plain) == text else None


class Names:
    """Queues under one prefix: ``pattern-_group``, ``pattern-_-_a…`` for a subscriber without a group, ``-_-_i…``
    for replies; ``cut-_-_h…`` and ``cut-_-_b…`` where the first two would be too long."""

    def __init__(self, prefix: str, fifo: bool) -> None:
        self.prefix = prefix
        self._suffix = ".fifo" if fifo else ""
        self.pattern = lru_cache(maxsize=16384)(self._pattern)

    def group(self, pattern: str, group: str) -> str:
        """The queue that the group shares."""
        return self._fitting(pattern, f"{_GROUP}{escape(group)}", f"{_OTHER}h{digest(pattern, group)}")

    def alone(self, pattern: str, id: str) -> str:
        """The queue of one subscriber."""
        return self._fitting(pattern, f"{_OTHER}a{digest(id)}", f"{_OTHER}b{digest(id)}")

    def inbox(self, address: str) -> str:
        """The queue for replies to the address. Order is nothing to it."""
        return f"{self.prefix}{_OTHER}i{digest(address)}"

    def election(self, name: str) -> str:
        """The queue whose first message makes a leader."""
        return f"{self.prefix}{_OTHER}e{digest(name)}.fifo"

    def _fitting(self, pattern: str, end: str, short: str) -> str:
        room = _LONGEST - len(self.prefix) - len(self._suffix) - len(EXPRESS)
        name = escape(pattern)
        if len(name) + len(end) > room:
            cut = _ESCAPED.match(name[: room - len(short)])
            name, end = cut[0] if cut else "", short
        return f"{self.prefix}{name}{end}{self._suffix}"

    def is_alone(self, name: str) -> bool:
        """Whether it is the queue of one subscriber or an inbox, worth nothing without its process."""
        _, found, kind = name.partition(_OTHER)
        return bool(found) and kind[0] in "abi"

    def _pattern(self, name: str) -> str | None:
        """What the queue's group subscribed to. Empty: its tags know. None: not a queue for topics."""
        if not name.startswith(self.prefix) or not name.endswith(self._suffix) or name.endswith(EXPRESS):
            return None
        own = name[len(self.prefix) : len(name) - len(self._suffix)]
        pattern = _ESCAPED.match(own)
        kind = own[pattern.end() :] if pattern is not None else ""
        if pattern is None or not kind.startswith(_GROUP) or kind.startswith(f"{_OTHER}i"):
            return None
        return "" if kind.startswith((f"{_OTHER}h", f"{_OTHER}b")) else unescape(pattern[0]) or None


def pattern_tags(pattern: str) -> dict[str, str]:
    """Tags that tell the pattern of a queue whose name cannot."""
    text = urlsafe_b64encode(pattern.encode()).decode().rstrip("=")
    return {f"{_TAG}{n}": text[at : at + _PIECE] for n, at in enumerate(range(0, len(text), _PIECE))}


def tagged_pattern(tags: Mapping[str, str]) -> str | None:
    """What `pattern_tags` was given. None: these are no such tags."""
    pieces = [tags[name] for n in range(len(tags)) if (name := f"{_TAG}{n}") in tags]
    text = "".join(pieces)
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode() or None
    except ValueError:
        return None


def stand_in(pattern: str) -> str:
    """A topic for a foreign message that names none: the pattern, with ``foreign`` for its wildcards."""
    words = ["foreign" if word == "*" else word for word in pattern.split(".") if word != "#"]
    return ".".join(words) or "foreign"
