"""Reads a handler's signature once, at subscribe time: what it wants and how to call it."""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import msgspec

from ._message import Message
from .errors import ConfigurationError

Call = Callable[..., Coroutine[Any, Any, Any]]
_NO_TYPE = (inspect.Parameter.empty, Any, object, Message)


class Handler(msgspec.Struct, frozen=True):
    """A handler, ready to be called."""

    name: str
    #: Takes the message (or payload, or list of them) and, if `takes_reply`, a Response.
    call: Call
    #: What the payload is decoded into; Any: whatever the serializer makes of it.
    payload_type: Any
    #: The handler wants the payload itself, not a Message.
    bare: bool
    takes_reply: bool
    #: Its value answers requests.
    responds: bool = False


def compile_handler(function: Callable[..., Any], *, batch: bool, in_thread: bool | None) -> Handler:
    """What `function` takes and how to call it. Raises: TypeError if it is not callable with a message,
    ConfigurationError if an annotation cannot be resolved."""
    if not callable(function):
        raise TypeError(f"a handler must be callable, not {type(function).__name__}")
    name = handler_name(function)
    first, *rest = _parameters(function, name)
    annotation = _annotation(function, first, name)
    if batch:
        arguments = typing.get_args(annotation)
        annotation = arguments[0] if arguments else Any
    bare = annotation not in _NO_TYPE
    return Handler(name, _caller(function, in_thread), annotation if bare else Any, bare, bool(rest))


def handler_name(function: Callable[..., Any]) -> str:
    """The handler's dotted name, for logs and dead letters."""
    target = function.func if isinstance(function, functools.partial) else function
    module = getattr(target, "__module__", "")
    return f"{module}.{getattr(target, '__qualname__', type(target).__name__)}"


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        signature = inspect.signature(function)
    except ValueError:  # built-ins such as some C functions have none
        return [inspect.Parameter("message", kinds[0])]
    parameters = [p for p in signature.parameters.values() if p.kind in kinds]
    if not parameters and any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values()):
        return [inspect.Parameter("message", kinds[0])]
    wanted = [p for i, p in enumerate(parameters) if i == 0 or p.default is p.empty or _is_reply(p)]
    if not wanted or len(wanted) > 2 or (len(wanted) == 2 and not _is_reply(wanted[1])):
        raise TypeError(f"handler {name} must take one message, and may take a second parameter `reply: Response`")
    return wanted


def _is_reply(parameter: inspect.Parameter) -> bool:
    return getattr(parameter.annotation, "__name__", parameter.annotation) == "Response" or parameter.name in (
        "reply",
        "response",
    )


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter, name: str) -> Any:
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    if annotation.rsplit(".", 1)[-1] in ("Message", "Request", "Any"):
        return Message
    target: Any = function.func if isinstance(function, functools.partial) else function
    if not isinstance(target, types.FunctionType | types.MethodType) and not inspect.isclass(target):
        target = getattr(target, "__call__", target)  # noqa: B004 - the bound method, for its annotations
    try:
        return typing.get_type_hints(target, localns=_closure(target))[parameter.name]
    except (NameError, TypeError, AttributeError, KeyError) as error:
        raise ConfigurationError(
            f"handler {name}: the annotation {annotation!r} of {parameter.name!r} cannot be resolved ({error}); "
            "define the type at module level, or import it there"
        ) from error


def _closure(target: Any) -> dict[str, Any]:
    function = inspect.unwrap(getattr(target, "__func__", target))
    return dict(inspect.getclosurevars(function).nonlocals) if inspect.isfunction(function) else {}


def _caller(function: Callable[..., Any], in_thread: bool | None) -> Call:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return function
    limiter: list[anyio.CapacityLimiter] = []  # made on first use: building a subscription touches no loop

    async def call(*arguments: Any) -> Any:
        if in_thread is False:
            result = function(*arguments)
        else:
            if not limiter:
                limiter.append(anyio.CapacityLimiter(math.inf))  # the subscription's concurrency is the limit
            work = functools.partial(_contained, function, arguments)
            (result,) = await anyio.to_thread.run_sync(work, limiter=limiter[0], abandon_on_cancel=True)
        return await result if inspect.isawaitable(result) else result

    return call


def _contained(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any]:
    try:
        return (function(*arguments),)  # wrapped: trio takes no coroutine from a thread
    except StopIteration as stop:  # would end the coroutine that waits for the thread as if it had returned
        raise RuntimeError("the handler raised StopIteration") from stop
