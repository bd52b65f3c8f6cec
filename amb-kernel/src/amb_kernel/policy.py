"""Policies: who may send where, how often, and what is recorded."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import msgspec
from amb_core.config import validate
from amb_core.errors import ConfigurationError
from amb_core.topics import validate_pattern

__all__ = ["EVERYBODY", "Action", "Policy", "Rate", "Rule"]

#: In ``allow`` and ``deny``: whoever it is.
EVERYBODY = "*"
Action: TypeAlias = Literal["allow", "deny"]
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(rf"([1-9]\d*)\s*/\s*({'|'.join(_SECONDS)})")


class Rate(msgspec.Struct, frozen=True):
    """At most `count` sends in any `seconds` seconds."""

    count: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Rate:
        """The rate that ``"100/minute"`` says. Raises: ConfigurationError."""
        found = _RATE.fullmatch(text.strip())
        if found is None:
            raise ConfigurationError(
                f"rate_limit {text!r} cannot be read: write a number above 0 and a unit, as in '100/minute' "
                f"({', '.join(_SECONDS)})"
            )
        return cls(int(found[1]), _SECONDS[found[2]])


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for sending to the topics of one pattern."""

    #: A topic or pattern.
    topic: str
    #: The principals that may send; everybody else may not. None: the rule lists nobody, and refuses nobody.
    allow: tuple[str, ...] | None = None
    #: The principals that may neither send nor subscribe, whatever allows them.
    deny: tuple[str, ...] = ()
    #: For each agent by itself, such as ``"100/minute"``.
    rate_limit: str | None = None
    #: Record each send that goes through. What is refused is always recorded.
    audit: bool = False

    def __post_init__(self) -> None:
        validate(self)
        validate_pattern(self.topic)
        if self.rate_limit is not None:
            Rate.parse(self.rate_limit)


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rules under a name. A rule may be given as a dict of `Rule`'s fields.

    Raises: ConfigurationError that names what is wrong."""

    name: str
    rules: tuple[Rule, ...] = ()
    #: What happens to a send that no rule allows or refuses.
    default_action: Action = "allow"

    def __post_init__(self) -> None:
        validate(self)
