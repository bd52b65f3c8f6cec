"""`AgentKernel`: the kernel as one agent sees it. Everything it does, it does under that agent's name."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar, overload
from weakref import WeakKeyDictionary

from amb_core import AckMode, Message, MessageFilter
from amb_core.topics import is_pattern, validate_pattern, validate_topic

from ._elections import Leadership, elect
from ._governor import Governor, check_hook
from ._identity import Identity, acting
from ._life import Life
from ._schedule import repeat
from ._sending import held_fast, sign

Handler: TypeAlias = Callable[..., Awaitable[Any]]
F = TypeVar("F", bound=Handler)


class KernelSubscription(str):
    """A subscription made through the kernel; also its own id, as a string."""

    __slots__ = ("handler", "topic")
    topic: str
    handler: Callable[..., Any]

    def __new__(cls, topic: str, handler: Callable[..., Any]) -> KernelSubscription:
        self = super().__new__(cls, f"kernel-{secrets.token_hex(6)}")
        self.topic, self.handler = topic, handler
        return self


class _Behind(NamedTuple):
    who: Identity
    life: Life
    governor: Governor


#: What each view works with. Not in the view, because an agent has that: none of its attributes leads to the bus.
_behind: WeakKeyDictionary[AgentKernel, _Behind] = WeakKeyDictionary()


class AgentKernel:
    """What an agent is given instead of the bus. Its methods send, subscribe and wait as that agent, under the
    kernel's policies; what it began ends when the agent does."""

    __slots__ = ("__weakref__",)

    def __init__(self, who: Identity, life: Life, governor: Governor) -> None:
        _behind[self] = _Behind(who, life, governor)

    @property
    def name(self) -> str:
        """The agent's name."""
        return _behind[self].who.name

    @property
    def kernel_id(self) -> str:
        """The kernel it belongs to."""
        return _behind[self].governor.auditor.kernel_id

    # --- sending

    async def publish(self, topic_or_message: str | Message | None = None, message: Any = None, **options: Any) -> str:
        """Publish as this agent; returns the message's id. Arguments, options and errors as `MessageBus.publish`; the
        sender is always the agent. Raises also: PolicyDenied, RateLimited, AuditFailed."""
        who, _, governor = _behind[self]
        named = options.pop("topic", None)
        if named is not None and topic_or_message is not None:
            raise TypeError("give the topic once")
        topic, own = held_fast(topic_or_message if named is None else named)
        sign(who, own, options)
        await governor.clear_send(who, topic)
        return await governor.bus.publish(own, message, **options)

    async def request(
        self, topic: str | Message, message: Any = None, timeout: float = 30.0, **options: Any
    ) -> Message:
        """Ask as this agent; returns the first reply. Otherwise as `MessageBus.request` and `publish`."""
        who, _, governor = _behind[self]
        concrete, own = held_fast(topic)
        sign(who, own, options)
        await governor.clear_send(who, concrete)
        reply = await governor.bus.request(own, message, timeout, **options)
        reply.native = None
        return reply

    # --- subscribing

    @overload
    def subscribe(self, topic: str, **options: Any) -> Callable[[F], F]: ...
    @overload
    def subscribe(self, topic: str, handler: Handler, **options: Any) -> Awaitable[KernelSubscription]: ...
    def subscribe(
        self, topic: str, handler: Handler | None = None, *, answers: bool | None = None, **options: Any
    ) -> Any:
        """Call an async handler with each Message on a topic or pattern, once policy and validators have passed it and
        pipelines have changed it. Either a decorator, or with `handler` to be awaited: then returns when it is live.

        `answers`: a request is answered with what the handler returns or raises; None: on a topic yes, on a pattern
        no, since who watches many topics rarely answers for them. Options as `MessageBus.subscribe`.
        Raises: PolicyDenied; TypeError for a handler that is not async; and as `MessageBus.subscribe`."""
        if handler is not None:
            return _subscribed(self, topic, handler, answers, options)

        def decorate(function: F) -> F:
            _declare(self, topic, function, answers, options)
            return function

        return decorate

    def on_message(self, topic: str, **options: Any) -> Callable[[F], F]:
        """Decorator: as `subscribe`, for a handler that also takes a `Context`, and never answers."""

        def decorate(function: F) -> F:
            _declare(self, topic, function, False, options, with_context=True)
            return function

        return decorate

    async def unsubscribe(self, what: str | Callable[..., Any]) -> None:
        """End subscriptions of this agent, given one itself, its topic or its handler. Raises: ValueError if there is
        none."""
        life = _behind[self].life
        own = [each for each in {**life.endings, **life.declared} if isinstance(each, KernelSubscription)]
        found = [each for each in own if what in (str(each), each.topic) or what is each.handler]
        if not found:
            raise ValueError(f"{self.name!r} has no subscription with this id, topic or handler: {what!r}")
        for each in found:
            await life.drop(each)

    # --- time and leadership

    def schedule(self, interval: float) -> Callable[[F], F]:
        """Decorator: call an async function without arguments at once and then every `interval` seconds, while the
        agent lives. A call that takes longer skips what it missed; one that raises is logged, recorded, and called
        again. Raises: ValueError, TypeError."""
        if isinstance(interval, bool) or not interval > 0:
            raise ValueError(f"interval is a number of seconds above 0, not {interval!r}")

        def decorate(function: F) -> F:
            check_hook(function, 0, "no argument")
            who, life, governor = _behind[self]
            job = acting(self, function)
            work = repeat(job, interval, governor.auditor, who.name)
            life.declare(job, lambda: life.spawn(work))
            return function

        return decorate

    async def elect_leader(self, topic: str, ttl: float = 30.0, *, wait: bool = False) -> Leadership:
        """Run for the leadership of `topic`; with `wait`, until it is won. The result is true while this agent leads.

        Held for `ttl` seconds, and renewed in the background while the agent lives. See `Leadership`.
        Raises: UnsupportedError if the broker cannot elect, PolicyDenied if the agent may not send to `topic`,
        ValueError, BrokerUnavailable."""
        validate_topic(topic)
        if isinstance(ttl, bool) or not ttl > 0:
            raise ValueError(f"ttl is a number of seconds above 0, not {ttl!r}")
        who, life, governor = _behind[self]
        await governor.clear_send(who, topic)
        return await elect(topic, ttl, wait, who.name, life)


async def _subscribed(
    view: AgentKernel, topic: str, handler: Handler, answers: bool | None, options: dict[str, Any]
) -> KernelSubscription:
    who, life, governor = _behind[view]
    life.check_running("subscribing")
    denied = governor.subscription_denied(who, topic)
    if denied is not None:
        await governor.record_denial(who, topic, denied)
        raise denied
    subscription = _declare(view, topic, handler, answers, options)
    await governor.bus.connect()
    return subscription


def _declare(
    view: AgentKernel,
    topic: str,
    handler: Handler,
    answers: bool | None,
    options: dict[str, Any],
    with_context: bool = False,
) -> KernelSubscription:
    who, life, governor = _behind[view]
    validate_pattern(topic)
    check_hook(handler, 1 + with_context, "the message and a context" if with_context else "the message")
    _check_parameter(handler)
    if options.get("ack_mode") in (AckMode.BATCH, "batch"):
        raise ValueError(f"{topic!r}: the kernel checks messages one by one: its handlers take no batches")
    denied = governor.subscription_denied(who, topic)
    if denied is not None:
        life.spawn(lambda: governor.record_denial(who, topic, denied))
        raise denied
    answers = not is_pattern(topic) if answers is None else answers
    subscription = KernelSubscription(topic, handler)
    life.declare(subscription, lambda: _begin(view, subscription, answers, options, with_context))
    return subscription


def _begin(
    view: AgentKernel, subscription: KernelSubscription, answers: bool, options: dict[str, Any], with_context: bool
) -> None:
    _, life, governor = _behind[view]
    bus, handler, wildcard = governor.bus, subscription.handler, is_pattern(subscription.topic)

    async def deliver(message: Message) -> Any:
        if wildcard and governor.is_audit(message):
            return None  # who watches everything, and records it, would watch his records
        context = await governor.admit(message, view.publish)
        return await (handler(message, context) if with_context else handler(message))

    deliver.__qualname__ = getattr(handler, "__qualname__", type(handler).__name__)
    delivered = acting(view, deliver)
    decorate = bus.responder if answers else bus.subscriber
    decorate(subscription.topic, **_governed(view, options))(delivered)
    life.endings[subscription] = lambda: bus.unsubscribe(delivered)


def _governed(view: AgentKernel, options: dict[str, Any]) -> dict[str, Any]:
    """The options, where a filter that is the agent's code acts as the agent, and sees what its handlers see."""
    predicate = options.get("filter")
    if not callable(predicate) or type(predicate) is MessageFilter:
        return options

    def passes(message: Message) -> Any:
        message.native = None
        return predicate(message)

    return {**options, "filter": acting(view, passes)}


def _check_parameter(handler: Callable[..., Any]) -> None:
    first = next(iter(inspect.signature(handler).parameters.values()))
    kind = first.annotation
    name = kind.rsplit(".", 1)[-1] if isinstance(kind, str) else kind
    if name not in (inspect.Parameter.empty, Any, object, Message, "Message", "Request", "Any", "object"):
        raise TypeError(
            f"{getattr(handler, '__qualname__', handler)}: the kernel's handlers take the Message, not {kind}: "
            "read message.data, which validators have checked and pipelines may have changed"
        )
