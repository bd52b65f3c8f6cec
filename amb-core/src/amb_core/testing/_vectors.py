"""Tables that several cases use: patterns and topics, weird strings, random patterns and a slow, plain matcher."""

from __future__ import annotations

import random
from collections.abc import Sequence

#: (pattern, topics that match, topics that do not). AMQP's meaning: ``*`` one word, ``#`` zero or more.
VECTORS: Sequence[tuple[str, Sequence[str], Sequence[str]]] = (
    ("a", ("a",), ("b", "a.a", "aa", "A")),
    ("a.b", ("a.b",), ("a", "a.b.c", "b.a", "a.bb")),
    ("*", ("a", "b", "abc"), ("a.b", "a.b.c")),
    ("*.*", ("a.b", "x.y"), ("a", "a.b.c")),
    ("a.*", ("a.b", "a.c", "a.a"), ("a", "a.b.c", "b.a", "ab.c")),
    ("*.a", ("b.a", "a.a"), ("a", "a.b", "c.b.a")),
    ("a.*.c", ("a.b.c", "a.c.c"), ("a.c", "a.b.b.c", "a.b.d")),
    ("#", ("a", "a.b", "a.b.c.d.e"), ()),
    ("a.#", ("a", "a.b", "a.b.c"), ("ab", "b.a", "b")),
    ("#.a", ("a", "b.a", "c.b.a", "a.a"), ("a.b", "ba", "b")),
    ("a.#.b", ("a.b", "a.x.b", "a.x.y.b", "a.b.b"), ("a", "b", "a.b.c", "ab", "x.a.b")),
    ("#.a.#", ("a", "x.a", "a.x", "x.a.y", "a.a"), ("x", "ab", "x.y")),
    ("a.#.b.#", ("a.b", "a.x.b", "a.b.x", "a.x.b.y.z"), ("a", "a.x", "b.a")),
    ("#.#", ("a", "a.b"), ()),
    ("*.#", ("a", "a.b", "a.b.c"), ()),
    ("#.*", ("a", "a.b", "a.b.c"), ()),
    ("#.*.#", ("a", "a.b"), ()),
    ("*.#.*", ("a.b", "a.b.c"), ("a", "b")),
    ("a.*.#", ("a.b", "a.b.c"), ("a", "b.a")),
    ("a.#.*", ("a.b", "a.b.c"), ("a", "b.b")),
    (
        "logs.#.error",
        ("logs.error", "logs.a.error", "logs.a.b.error"),
        ("logs.xerror", "logs.error.x", "xlogs.error", "logs"),
    ),
)


def reference(pattern: str, topic: str) -> bool:
    """Whether they match, by the definition and nothing clever; owes nothing to the matcher under test."""
    return _words(pattern.split("."), topic.split("."))


def _words(pattern: Sequence[str], topic: Sequence[str]) -> bool:
    # One row per pattern word: which prefixes of the topic it can have consumed.
    reached = {0}
    for word in pattern:
        if word == "#":
            reached = set(range(min(reached), len(topic) + 1)) if reached else set()
        else:
            reached = {index + 1 for index in reached if index < len(topic) and word in ("*", topic[index])}
    return len(topic) in reached


def random_pattern(dice: random.Random, depth: int) -> str:
    """A pattern over few words, so that many match."""
    return ".".join(dice.choice(("a", "b", "c", "*", "#")) for _ in range(dice.randint(1, depth)))


def random_topic(dice: random.Random, depth: int) -> str:
    """A topic over few words."""
    return ".".join(dice.choice(("a", "b", "c")) for _ in range(dice.randint(1, depth)))


#: Words that are patterns, globs, regular expressions, subjects or SQL to somebody's broker.
ODD_WORDS: Sequence[str] = (
    "a?c", "a[b]c", "[^a]", "^a", "a$", "a%", "a_c", "a+", "(a)", ">", "a>", "a|b", "a\\c", "{a}", "a:b", "a/b", "a,b",
    "'a'", '"a"', "$a", "a;b",
    "ä", "日本", "a~b", "a=b", "a&b", "@a", "a!b", "-a", "--a",
)  # fmt: skip

#: What those would match if they were not literal.
PLAIN_WORDS: Sequence[str] = ("abc", "ac", "a", "aa", "b", "c", "abbc", "a-b", "axc", "xyz")

#: Header and body strings that somebody's protocol does not like.
WEIRD: Sequence[str] = (
    "plain", "with space", " leading", "trailing ", "tab\there", "new\nline", "carriage\rreturn", "nul\x00byte",
    "colon: value", "comma,value",
    "quote'\"", "back\\slash", "per%20cent", "ünïcödé", "日本語", "🚀 astral",
    "\u202eright to left", "combining e\u0301", "zero\u200bwidth", "<xml>&amp;</xml>",
    '{"json": 1}', "=?utf-8?q?mime?=", "null", "true", "0", "-1", "1e400", "ALLCAPS", "x" * 1000,
)  # fmt: skip
