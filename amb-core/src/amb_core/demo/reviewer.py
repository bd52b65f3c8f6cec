"""The reviewers: three of them, each with an eye for something else. They only answer."""

from __future__ import annotations

from collections.abc import Callable

from amb_core import MessageBus

from .messages import Opinion, Review
from .rollcall import answer_as


def size(review: Review) -> str:
    """Objects to commits that nobody can read."""
    lines = sum(change.added + change.removed for change in review.changes)
    return f"{lines} lines are too many for one commit" if lines > 400 else ""


def tests(review: Review) -> str:
    """Objects to code without tests."""
    paths = [change.path for change in review.changes]
    code = [path for path in paths if path.endswith((".py", ".js", ".ts", ".go", ".rs", ".c", ".java"))]
    return "code changed, and no test with it" if code and not any("test" in path for path in paths) else ""


def words(review: Review) -> str:
    """Objects to subjects that say too little or too much."""
    length = len(review.subject)
    return "" if 10 <= length <= 72 else f"a subject of {length} characters"


def reviewers(bus: MessageBus) -> None:
    """Answer for all three."""
    answer_as(bus, "reviewer")
    for eye in (size, tests, words):
        reviewer(bus, eye)


def reviewer(bus: MessageBus, eye: Callable[[Review], str]) -> None:
    """Answer as one of the panel, and take turns at requests for a single opinion."""

    @bus.responder("agents.review.panel")
    @bus.responder("agents.review.one", group="reviewers")
    async def review(request: Review) -> Opinion:
        reason = eye(request)
        return Opinion(eye.__name__, not reason, reason)
