"""All rules of all policies, found by topic: what they say about one send or one subscription."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from amb_core.topics import PatternTable

from ._identity import Identity
from .policy import EVERYBODY, Action, Policy, Rate, Rule


class Bound(msgspec.Struct, frozen=True):
    """A rule with its place."""

    policy: str
    number: int
    rule: Rule
    rate: Rate | None

    def __str__(self) -> str:
        return f"rule {self.number} ({self.rule.topic!r}) of policy {self.policy!r}"


class Refusal(msgspec.Struct, frozen=True):
    """Why not; `bound` is the rule that says so, None the default action."""

    why: str
    bound: Bound | None = None


class Rulebook:
    """See the module. Every matching rule has to agree: one that refuses is enough."""

    def __init__(self, policies: Sequence[Policy], default_action: Action) -> None:
        actions = {default_action, *(policy.default_action for policy in policies)}
        self._default: Action = "deny" if "deny" in actions else "allow"
        self._bounds = [
            Bound(policy.name, number, rule, Rate.parse(rule.rate_limit) if rule.rate_limit else None)
            for policy in policies
            for number, rule in enumerate(policy.rules, 1)
        ]
        self._table: PatternTable[Bound] = PatternTable()
        for bound in self._bounds:
            self._table.add(bound.rule.topic, bound)

    def sending(self, who: Identity, topic: str) -> Refusal | None:
        """Why `who` may not send to `topic`; None: it may."""
        bounds, principals = self._table.match(topic), who.principals
        for bound in bounds:
            if _lists(bound.rule.deny, principals):
                return Refusal(f"{bound} denies it", bound)
        allowing = [bound for bound in bounds if bound.rule.allow is not None]
        for bound in allowing:
            allowed = bound.rule.allow or ()
            if not _lists(allowed, principals):
                return Refusal(f"{bound} allows only {', '.join(allowed) or 'nobody'}", bound)
        if not allowing and self._default == "deny":
            return Refusal("no rule allows it, and the default action is deny")
        return None

    def subscribing(self, who: Identity, pattern: str) -> Refusal | None:
        """Why `who` may not subscribe to `pattern`: a rule denies it some topic that the pattern takes in."""
        principals = who.principals
        for bound in self._bounds:
            if _lists(bound.rule.deny, principals) and overlap(bound.rule.topic, pattern):
                return Refusal(f"{bound} denies it", bound)
        return None

    def limited(self, topic: str) -> list[Bound]:
        """The rules that limit how often one may send to `topic`."""
        return [bound for bound in self._table.match(topic) if bound.rate is not None]

    def audited(self, topic: str) -> Bound | None:
        """The first rule that wants sends to `topic` recorded."""
        return next((bound for bound in self._table.match(topic) if bound.rule.audit), None)


def _lists(names: Sequence[str], principals: frozenset[str]) -> bool:
    return EVERYBODY in names or not principals.isdisjoint(names)


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both patterns."""
    left, right = one.split("."), other.split(".")
    # reached[j]: some words match what was read of `left` and the first j words of `right`.
    reached = _skip(right, [True] + [False] * len(right))
    for word in left:
        reached = _step(word, right, reached)
    return reached[-1]


def _step(word: str, right: list[str], before: list[bool]) -> list[bool]:
    after = [word == "#" and before[0]] + [False] * len(right)
    for j, theirs in enumerate(right, 1):
        if word == "#":
            after[j] = before[j] or after[j - 1]
        elif theirs == "#":
            after[j] = before[j] or before[j - 1]
        else:
            after[j] = before[j - 1] and (word == theirs or "*" in (word, theirs))
    return _skip(right, after)


def _skip(right: list[str], reached: list[bool]) -> list[bool]:
    """A ``#`` may stand for no word at all."""
    for j, theirs in enumerate(right, 1):
        if theirs == "#" and reached[j - 1]:
            reached[j] = True
    return reached
