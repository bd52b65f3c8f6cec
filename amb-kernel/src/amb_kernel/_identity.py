"""Who acts: the name and roles behind every send, and whose code is running now."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from amb_core import ConfigurationError

if TYPE_CHECKING:
    from ._view import AgentKernel

F = TypeVar("F", bound=Callable[..., Any])

#: The view of the agent whose code is running; None: nobody's, so the kernel's own.
current: ContextVar[AgentKernel | None] = ContextVar("amb_kernel_current", default=None)

#: What an agent may do by itself in a method that Python calls.
_SPECIAL = ("__init__", "__call__", "__aenter__", "__aexit__")


class Identity(msgspec.Struct, frozen=True):
    """A name, and everything that a rule may call its bearer."""

    name: str
    roles: tuple[str, ...] = ()

    @property
    def principals(self) -> frozenset[str]:
        """The name, the name without ``-agent``, and the roles."""
        own = {self.name, self.name.removesuffix("-agent")} if self.name else set[str]()
        return frozenset(own.union(self.roles))


def identity(name: str, roles: Sequence[str] = ()) -> Identity:
    """The identity of that name. Raises: ConfigurationError for names and roles that a rule could not list."""
    if isinstance(roles, str):
        raise ConfigurationError(f"roles of {name!r} is a list of names, not the text {roles!r}")
    for text in (name, *roles):
        if not isinstance(text, str) or not text or text == "*" or "," in text or text != text.strip():
            raise ConfigurationError(f"{text!r} cannot be an agent's name or role: use a word without comma, not '*'")
    return Identity(name, tuple(roles))


def acting(view: AgentKernel, function: F) -> F:
    """`function`, but what it does through the kernel, it does as the agent of `view`."""

    @functools.wraps(function)
    async def awaited(*arguments: Any, **named: Any) -> Any:
        token = current.set(view)
        try:
            return await function(*arguments, **named)
        finally:
            current.reset(token)

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        token = current.set(view)
        try:
            return function(*arguments, **named)
        finally:
            current.reset(token)

    return awaited if inspect.iscoroutinefunction(function) else called  # type: ignore[return-value]


def act_as(view: AgentKernel, cls: type) -> None:
    """Let every method that `cls` has act as the agent of `view`, whoever calls it; those it has inherited too."""
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        if not inspect.isfunction(function) or inspect.isasyncgenfunction(function):
            continue
        if not name.startswith("__") or name in _SPECIAL:
            wrapped = acting(view, function)
            setattr(cls, name, type(member)(wrapped) if function is not member else wrapped)
