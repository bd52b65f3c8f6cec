"""Where everything that is sent and delivered passes: policy, validators, pipelines, audit."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from amb_core import Message, MessageBus, MessagePriority
from amb_core.topics import PatternTable, validate_pattern

from ._audit import Auditor
from ._identity import Identity
from ._rates import Limiter
from ._rulebook import Refusal, Rulebook
from .errors import MessageRefused, PolicyDenied, RateLimited

#: The header in which an agent's roles travel with what it sends. Only kernels write it.
ROLES = "kernel-roles"


class _Behind(NamedTuple):
    auditor: Auditor
    message: Message
    publish: Callable[..., Awaitable[str]]


#: What each context works with. Not in it, because agents have that: none of its attributes leads to the bus.
_behind: WeakKeyDictionary[Context, _Behind] = WeakKeyDictionary()


class Context:
    """What `on_message` handlers, validators and pipelines are given beside the message."""

    __slots__ = ("__weakref__",)

    def __init__(self, auditor: Auditor, message: Message, publish: Callable[..., Awaitable[str]]) -> None:
        _behind[self] = _Behind(auditor, message, publish)

    @property
    def kernel_id(self) -> str:
        """The kernel that handles the message."""
        return _behind[self].auditor.kernel_id

    async def audit_log(self, record: dict[str, Any]) -> None:
        """Write an audit record about the message; ``record["event"]`` names it. Raises: AuditFailed, TypeError."""
        if not isinstance(record, dict):
            raise TypeError(f"audit_log takes a dict, not {type(record).__name__}")
        auditor, about, _ = _behind[self]
        event = str(record.get("event", "logged"))
        await auditor.write(event, about.sender or "", topic=about.topic, message_id=about.id, detail=dict(record))

    async def escalate(self, topic: str, data: Any) -> str:
        """Record the message as escalated and publish `data` on `topic` as CRITICAL, under the policies that hold for
        whoever handles it; returns the new message's id. Raises: as `AgentKernel.publish`."""
        await self.audit_log({"event": "escalated", "to": topic})
        return await _behind[self].publish(topic, data, priority=MessagePriority.CRITICAL)


Hook: TypeAlias = Callable[[Message, Context], Awaitable[Any]]


class Governor:
    """One kernel's rules, applied. Holds the bus: it is not handed to agents."""

    def __init__(self, bus: MessageBus, rulebook: Rulebook, auditor: Auditor) -> None:
        self.bus, self.auditor = bus, auditor
        self._rulebook, self._limiter = rulebook, Limiter()
        self._validators: PatternTable[Hook] = PatternTable()
        self._pipelines: PatternTable[Hook] = PatternTable()

    # --- sending

    async def clear_send(self, who: Identity, topic: str) -> None:
        """Return if `who` may send to `topic` now. Raises: PolicyDenied, RateLimited, AuditFailed."""
        refusal = self._rulebook.sending(who, topic)
        if topic == self.auditor.topic:
            refusal = Refusal("only the kernel writes audit records")
        if refusal is not None:
            denied = _denied(who, topic, refusal, "send to")
            await self.record_denial(who, topic, denied)
            raise denied
        full = self._limiter.take(self._rulebook.limited(topic), who.name)
        if full is not None:
            bound, wait = full
            await self.auditor.note("rate_limited", who.name, topic=topic, rule=str(bound))
            raise RateLimited(
                f"{who.name!r} has sent to {topic!r} as often as {bound} allows ({bound.rule.rate_limit}): "
                f"try again in {wait:.3g} s",
                str(bound),
                wait,
            )
        audited = self._rulebook.audited(topic)
        if audited is not None:
            await self.auditor.write("sent", who.name, topic=topic, rule=str(audited))

    def subscription_denied(self, who: Identity, pattern: str) -> PolicyDenied | None:
        """Why `who` may not subscribe; None: it may. Recording it is left to `record_denial`."""
        refusal = self._rulebook.subscribing(who, pattern)
        return None if refusal is None else _denied(who, pattern, refusal, "subscribe to")

    async def record_denial(self, who: Identity, topic: str, denied: PolicyDenied) -> None:
        """Write down that `who` was refused."""
        await self.auditor.note("denied", who.name, topic=topic, rule=denied.rule, detail={"why": str(denied)})

    # --- delivering

    def add_validator(self, pattern: str, hook: Hook) -> None:
        """Call `hook` for each message that is delivered on `pattern`, before pipelines."""
        self._add(self._validators, pattern, hook)

    def add_pipeline(self, pattern: str, hook: Hook) -> None:
        """Let `hook` change each message that is delivered on `pattern`."""
        self._add(self._pipelines, pattern, hook)

    def _add(self, table: PatternTable[Hook], pattern: str, hook: Hook) -> None:
        validate_pattern(pattern)
        check_hook(hook, 2, "the message and a context")
        table.add(pattern, hook)

    def is_audit(self, message: Message) -> bool:
        """Whether it is a record of a kernel's own."""
        return message.topic == self.auditor.topic

    async def admit(self, message: Message, publish: Callable[..., Awaitable[str]]) -> Context:
        """Prepare a delivered message for its handler: policy, then validators, then pipelines.

        Raises: MessageRefused; and what a pipeline raises, which is a failure like a handler's."""
        message.native = None  # a client library's object can lead to its connection
        context = Context(self.auditor, message, publish)
        sender = Identity(message.sender or "", tuple(filter(None, message.headers.get(ROLES, "").split(","))))
        refusal = None if self.is_audit(message) else self._rulebook.sending(sender, message.topic)
        if refusal is not None:
            rule = None if refusal.bound is None else str(refusal.bound)
            await self._refuse(message, f"{sender.name!r} may not send it: {refusal.why}", rule)
        for validator in self._validators.match(message.topic):
            await self._validate(validator, message, context)
        for pipeline in self._pipelines.match(message.topic):
            data = await pipeline(message, context)
            if data is not None:
                message.data = data
        return context

    async def _validate(self, validator: Hook, message: Message, context: Context) -> None:
        try:
            valid = await validator(message, context)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            await self._refuse(message, f"{_name(validator)} raised {text}", None, error)
        else:
            if valid is False:
                await self._refuse(message, f"{_name(validator)} returned False", None)

    async def _refuse(self, message: Message, why: str, rule: str | None, cause: Exception | None = None) -> None:
        if not self.is_audit(message):  # else the record would be refused in its turn, for ever
            await self._record_refusal(message, why, rule)
        raise MessageRefused(f"message {message.id!r} on {message.topic!r} was refused: {why}") from cause

    async def _record_refusal(self, message: Message, why: str, rule: str | None) -> None:
        about = {"topic": message.topic, "message_id": message.id, "rule": rule}
        await self.auditor.note("refused", message.sender or "", detail={"why": why}, **about)


def _denied(who: Identity, topic: str, refusal: Refusal, verb: str) -> PolicyDenied:
    known_as = ", ".join(sorted(who.principals))
    return PolicyDenied(
        f"{who.name!r} (known as {known_as}) may not {verb} {topic!r}: {refusal.why}; "
        "change the policy, or give the agent a role that it allows",
        None if refusal.bound is None else str(refusal.bound),
    )


def check_hook(function: Callable[..., Any], count: int, takes: str) -> None:
    """Return if `function` is async and takes `count` arguments. Raises: TypeError."""
    name = _name(function)
    called = function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004
    if not inspect.iscoroutinefunction(called):
        raise TypeError(f"{name} must be an `async def` function: the kernel awaits it")
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError as error:
        raise TypeError(f"{name} must take {takes}: {error}") from None


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
