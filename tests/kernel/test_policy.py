"""Policies: what they say about who may send where."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from amb_core import ConfigurationError
from amb_core.topics import compile_pattern
from amb_kernel import KernelSpace, Policy, Rate, Rule
from amb_kernel._identity import identity
from amb_kernel._rulebook import Rulebook, overlap
from hypothesis import given, settings
from hypothesis import strategies as st

COMMANDS = {"topic": "agents.*.commands", "allow": ["admin", "supervisor"], "deny": ["guest"]}


def may(name: str, topic: str, *rules: dict[str, Any], roles: tuple[str, ...] = (), default: Any = "allow") -> bool:
    book = Rulebook([Policy(name="p", rules=rules)], default)  # type: ignore[arg-type]
    return book.sending(identity(name, roles), topic) is None


@pytest.mark.parametrize(
    ("name", "roles", "allowed"),
    [
        ("admin", (), True),
        ("supervisor-agent", (), True),
        ("supervisor-agent-2", (), False),
        ("bob", ("admin",), True),
        ("bob", ("admin", "guest"), False),
        ("guest", (), False),
        ("worker", (), False),
    ],
)
def test_an_agent_is_known_by_its_name_without_agent_and_by_its_roles(
    name: str, roles: tuple[str, ...], allowed: bool
) -> None:
    assert may(name, "agents.a.commands", COMMANDS, roles=roles) is allowed


def test_no_matching_rule_allows_unless_the_default_is_to_deny() -> None:
    assert may("anyone", "other", COMMANDS)
    assert not may("anyone", "other", COMMANDS, default="deny")
    assert may("admin", "agents.a.commands", COMMANDS, default="deny")


def test_one_policy_that_denies_by_default_is_enough() -> None:
    book = Rulebook([Policy("open"), Policy("closed", default_action="deny")], "allow")
    assert book.sending(identity("a"), "t") is not None


def test_a_rule_without_a_list_neither_allows_nor_refuses() -> None:
    limited = {"topic": "t", "rate_limit": "1/day"}
    assert may("a", "t", limited)
    assert not may("a", "t", limited, default="deny")


def test_deny_beats_allow_whichever_rule_says_it() -> None:
    assert not may("a", "t.x", {"topic": "t.#", "allow": ["*"]}, {"topic": "t.x", "deny": ["a"]})
    assert not may("a", "t", {"topic": "t", "allow": ["a"], "deny": ["*"]})


def test_every_matching_rule_that_lists_names_has_to_list_the_agent() -> None:
    rules = {"topic": "t.#", "allow": ["a", "b"]}, {"topic": "t.x", "allow": ["b"]}
    assert (may("a", "t.x", *rules), may("b", "t.x", *rules), may("a", "t.y", *rules)) == (False, True, True)


def test_an_empty_list_allows_nobody() -> None:
    assert not may("a", "t", {"topic": "t", "allow": []})


def test_a_refusal_names_the_rule_and_who_may() -> None:
    refusal = Rulebook([Policy("p", [COMMANDS])], "allow").sending(identity("x"), "agents.a.commands")  # type: ignore[arg-type]
    assert refusal is not None
    assert refusal.why == "rule 1 ('agents.*.commands') of policy 'p' allows only admin, supervisor"


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ({"topic": "a", "alow": ["x"]}, "alow"),
        ({"topic": "a..b"}, "a..b"),
        ({"topic": "a", "allow": "admin"}, "allow"),
        ({"topic": "a", "rate_limit": "fast"}, "'100/minute'"),
        ({"topic": "a", "rate_limit": "0/minute"}, "'0/minute'"),
        ({"topic": "a", "audit": "yes"}, "audit"),
        ({"allow": ["a"]}, "topic"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_by_name(rule: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)^Policy: option 'rules'.*") as refused:
        Policy("p", [rule])  # type: ignore[arg-type]
    assert named in str(refused.value)


def test_a_rule_may_be_an_object_too() -> None:
    assert Policy("p", (Rule(topic="a", allow=("x",)),)) == Policy("p", [{"topic": "a", "allow": ["x"]}])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "rate"),
    [("100/minute", Rate(100, 60)), ("1 / second", Rate(1, 1)), ("5/hour", Rate(5, 3600)), ("9/day", Rate(9, 86400))],
)
def test_rates_are_read(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize("name", ["", "*", "a,b", " a", None])
def test_a_name_that_no_rule_could_list_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError):
        identity(name)
    with pytest.raises(ConfigurationError):
        identity("a", [name])


_WORDS = [list(words) for count in range(1, 5) for words in itertools.product("ab", repeat=count)]
_TOPICS = [".".join(words) for words in _WORDS]
_PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=3).map(".".join)


@settings(max_examples=400)
@given(_PATTERNS, _PATTERNS)
def test_patterns_overlap_when_a_topic_matches_both(one: str, other: str) -> None:
    """Patterns of up to three words, of which each needs at most two: topics of four words show every case but
    those in which only words that no pattern names would do."""
    left, right = compile_pattern(one), compile_pattern(other)
    both = any(left(topic) and right(topic) for topic in _TOPICS)
    assert overlap(one, other) is both
    assert overlap(other, one) is both


def test_a_subscription_is_closed_to_whom_a_rule_denies_a_topic_of_it() -> None:
    book = Rulebook([Policy("p", [COMMANDS])], "allow")  # type: ignore[arg-type]
    closed = [
        p for p in ("agents.#", "#", "agents.a.commands", "*.a.*", "agents.*") if book.subscribing(identity("guest"), p)
    ]
    assert closed == ["agents.#", "#", "agents.a.commands", "*.a.*"]
    assert book.subscribing(identity("nobody"), "agents.#") is None


def test_policies_have_names_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match="two policies are named 'p'"):
        KernelSpace([Policy("p"), Policy("p")])
    with pytest.raises(ConfigurationError, match="Policy objects"):
        KernelSpace([{"name": "p"}])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="'allow' or 'deny'"):
        KernelSpace(default_action="maybe")  # type: ignore[arg-type]
