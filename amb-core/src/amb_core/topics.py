"""Topics and patterns: the one grammar and the one matcher, identical on every backend.

A topic is words separated by dots: ``agents.worker-7.status``. A word is one or more characters; white space,
control characters and lone surrogates are refused, everything else is literal and case-sensitive. A topic is
at most 255 bytes in UTF-8.

A pattern may hold wildcards in place of whole words, anywhere and as often as needed: ``*`` stands for exactly
one word, ``#`` for zero or more. ``agents.#`` matches ``agents``; ``logs.#.error`` matches ``logs.error``.
A topic is a pattern that matches only itself.

Topics that begin with ``_amb.`` are AMB's own. No pattern that begins with a wildcard matches them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = [
    "MAX_BYTES",
    "RESERVED",
    "PatternTable",
    "compile_pattern",
    "is_pattern",
    "validate_pattern",
    "validate_topic",
]

T = TypeVar("T")

#: The longest topic or pattern in UTF-8.
MAX_BYTES = 255
#: What AMB's own topics begin with.
RESERVED = "_amb."

_CACHED = 4096
_UNSAFE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_topics: dict[str, bool] = {}
_patterns: dict[str, None] = {}


def validate_topic(topic: str, *, internal: bool = False) -> None:
    """Return if `topic` may be published to; `internal` admits AMB's own topics too.

    Does not block; a topic seen before costs one look-up.
    Raises: TypeError if it is no str; ValueError if it is malformed, has a wildcard or is reserved.
    """
    try:
        if not _topics[topic] or internal:
            return
    except (KeyError, TypeError):
        _check(topic, "topic")
        wildcard = next((word for word in topic.split(".") if "*" in word or "#" in word), None)
        if wildcard is not None:
            raise ValueError(
                f"topic {_short(topic)} has a wildcard in {_short(wildcard)}: publish to a concrete topic; "
                "'*' and '#' belong in subscriptions"
            ) from None
        reserved = topic.startswith(RESERVED)
        if len(_topics) >= _CACHED:
            _topics.clear()
        _topics[topic] = reserved
        if not reserved or internal:
            return
    raise _reserved("topic", topic)


def validate_pattern(pattern: str, *, internal: bool = False) -> None:
    """Return if `pattern`, a topic or one with wildcards, may be subscribed to; `internal` admits AMB's own.

    Does not block. Raises: TypeError if it is no str; ValueError if it is malformed or reserved.
    """
    if isinstance(pattern, str) and pattern in _patterns:
        return
    _check(pattern, "pattern")
    for word in pattern.split("."):
        if len(word) > 1 and ("*" in word or "#" in word):
            raise ValueError(f"pattern {_short(pattern)} mixes a wildcard with other characters in {_short(word)}: "
                             "'*' and '#' stand for whole words, as in 'a.*.b' or 'a.#'")  # fmt: skip
    if pattern.startswith(RESERVED):
        if internal:
            return
        raise _reserved("pattern", pattern)
    if len(_patterns) >= _CACHED:
        _patterns.clear()
    _patterns[pattern] = None


def is_pattern(topic: str) -> bool:
    """Whether a valid topic or pattern has wildcards."""
    return "*" in topic or "#" in topic


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether a valid topic matches the valid `pattern`. Costs at most words x words."""
    if not is_pattern(pattern):
        return pattern.__eq__
    if pattern == "#":
        return _is_public
    prefix = pattern.removesuffix(".#")
    if prefix != pattern and not is_pattern(prefix):
        dotted = prefix + "."
        return lambda topic: topic.startswith(dotted) or topic == prefix
    return _general(pattern.split("."))


def _check(text: str, kind: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a {kind} is a str such as 'agents.status', not {type(text).__name__}") from None
    if not text:
        raise ValueError(f"the {kind} is empty: name it with dot-separated words, as in 'agents.status'") from None
    unsafe = _UNSAFE.search(text)
    if unsafe is not None:
        raise ValueError(f"{kind} {_short(text)} has U+{ord(unsafe[0]):04X} at position {unsafe.start()}: white space, "
                         "control characters and lone surrogates are not allowed") from None  # fmt: skip
    if "" in text.split("."):
        raise ValueError(f"{kind} {_short(text)} has an empty word: dots stand between words, not at the "
                         "beginning or end, and not twice in a row") from None  # fmt: skip
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ValueError(f"{kind} {_short(text)} is {size} bytes long in UTF-8; the limit is {MAX_BYTES}") from None


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else repr(text[:77] + "...")


def _reserved(kind: str, text: str) -> ValueError:
    return ValueError(
        f"{kind} {_short(text)} begins with {RESERVED!r}, which is reserved for AMB itself: use another first word"
    )


def _is_public(topic: str) -> bool:
    return not topic.startswith(RESERVED)


def _general(pattern: list[str]) -> Callable[[str], bool]:
    """Between two ``#`` lies a run of words of fixed length, so the leftmost place where it fits is always good
    enough, and no choice is ever taken back."""
    runs: list[list[str]] = [[]]
    for word in pattern:
        if word == "#":
            runs.append([])
        else:
            runs[-1].append(word)
    first, middle, last = runs[0], runs[1:-1], runs[-1]
    open_ended, hides_reserved = len(runs) > 1, pattern[0] in ("*", "#")
    fixed = len(first) + (len(last) if open_ended else 0)

    def matches(topic: str) -> bool:
        if hides_reserved and topic.startswith(RESERVED):
            return False
        words = topic.split(".")
        count = len(words)
        if count < fixed or (count > fixed and not open_ended) or not _fits(first, words, 0):
            return False
        end = count - len(last) if open_ended else count
        if open_ended and not _fits(last, words, end):
            return False
        at = len(first)
        for run in middle:
            while at + len(run) <= end and not _fits(run, words, at):
                at += 1
            at += len(run)
        return at <= end

    return matches


def _fits(run: list[str], words: list[str], at: int) -> bool:
    return all(word in ("*", words[at + i]) for i, word in enumerate(run))


class _Node(Generic[T]):
    """One word of some patterns. `many` is set on the node of a ``#``, which may also take further words."""

    __slots__ = ("children", "entries", "many")

    def __init__(self, many: bool = False) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.entries: list[tuple[int, T]] = []
        self.many = many


class PatternTable(Generic[T]):
    """Values filed under patterns, found by topic.

    Finding costs what the topic's words cost, however many patterns there are; a topic asked for again costs
    one look-up. Belongs to one thread. Patterns are expected to be valid; see `validate_pattern`.
    """

    __slots__ = ("_cache", "_count", "_exact", "_next", "_root")

    def __init__(self) -> None:
        self._exact: dict[str, list[tuple[int, T]]] = {}
        self._root: _Node[T] = _Node()
        self._cache: dict[str, tuple[T, ...]] = {}
        self._next = self._count = 0

    def __len__(self) -> int:
        """The number of values filed."""
        return self._count

    def add(self, pattern: str, value: T) -> None:
        """File `value` under `pattern`; filed twice, it is found twice."""
        entry = (self._next, value)
        self._next += 1
        self._count += 1
        if not is_pattern(pattern):
            self._exact.setdefault(pattern, []).append(entry)
            self._cache.pop(pattern, None)
            return
        node = self._root
        for word in _normal(pattern):
            child = node.children.get(word)
            if child is None:
                child = node.children[word] = _Node(word == "#")
            node = child
        node.entries.append(entry)
        self._cache.clear()

    def remove(self, pattern: str, value: T) -> None:
        """Take out `value` filed under `pattern`, once. Raises: KeyError if it is not there."""
        if not is_pattern(pattern):
            _take(self._exact.get(pattern, []), pattern, value)
            if not self._exact[pattern]:
                del self._exact[pattern]
            self._cache.pop(pattern, None)
        else:
            self._remove_wildcard(pattern, value)
            self._cache.clear()
        self._count -= 1

    def _remove_wildcard(self, pattern: str, value: T) -> None:
        path: list[tuple[_Node[T], str]] = []
        node = self._root
        for word in _normal(pattern):
            path.append((node, word))
            child = node.children.get(word)
            if child is None:
                raise KeyError(pattern)
            node = child
        _take(node.entries, pattern, value)
        for parent, word in reversed(path):
            child = parent.children[word]
            if child.entries or child.children:
                break
            del parent.children[word]

    def match(self, topic: str) -> Sequence[T]:
        """Every value filed under a pattern that matches the concrete `topic`, in the order of `add`."""
        found = self._cache.get(topic)
        if found is None:
            found = self._look_up(topic)
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[topic] = found
        return found

    def _look_up(self, topic: str) -> tuple[T, ...]:
        entries = list(self._exact.get(topic, ()))
        if self._root.children:
            for node in self._walk(topic):
                entries += node.entries
        entries.sort(key=_sequence)
        return tuple([value for _, value in entries])

    def _walk(self, topic: str) -> set[_Node[T]]:
        """The nodes at which a pattern can have used up all words; all possibilities advance together, a word
        at a time, so several ``#`` cost no more than the nodes they reach."""
        words = topic.split(".")
        nodes = {self._root}
        if topic.startswith(RESERVED):
            first = self._root.children.get(words.pop(0))
            nodes = set() if first is None else {first}
        _skip_hashes(nodes)
        for word in words:
            reached: set[_Node[T]] = set()
            for node in nodes:
                if node.many:
                    reached.add(node)
                for name in (word, "*"):
                    child = node.children.get(name)
                    if child is not None:
                        reached.add(child)
            _skip_hashes(reached)
            nodes = reached
        return nodes


def _skip_hashes(nodes: set[_Node[T]]) -> None:
    """A ``#`` may stand for no word at all. `_normal` leaves no two of them in a row: one step is enough."""
    for node in list(nodes):
        child = node.children.get("#")
        if child is not None:
            nodes.add(child)


def _normal(pattern: str) -> list[str]:
    """The words, without the ``#`` right after another, which adds nothing."""
    words = pattern.split(".")
    return [word for i, word in enumerate(words) if not (word == "#" and i and words[i - 1] == "#")]


def _take(entries: list[tuple[int, T]], pattern: str, value: T) -> None:
    for i, (_, filed) in enumerate(entries):
        if filed is value or filed == value:
            del entries[i]
            return
    raise KeyError(pattern)


def _sequence(entry: tuple[int, object]) -> int:
    return entry[0]
