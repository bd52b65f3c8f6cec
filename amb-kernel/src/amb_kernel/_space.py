"""`KernelSpace`: agents, and the rules they live by, on one bus."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio
from amb_core import ConfigurationError, Message, MessageBus, RetryPolicy
from amb_core.concurrency import spawn
from amb_core.topics import validate_topic

from ._audit import Auditor, Sink
from ._elections import Leadership
from ._governor import Governor, Hook, check_hook
from ._identity import act_as, acting, current, identity
from ._life import AgentStatus, Life
from ._rulebook import Rulebook
from ._view import AgentKernel, Handler, KernelSubscription
from .errors import KernelNotRunning, PolicyDenied
from .policy import Action, Policy

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


class KernelSpace:
    """A place for agents on a bus, where policies hold.

    Without `message_bus` it makes one of its own, in memory. `name` and `roles` are what the kernel itself sends under.
    Audit records go to the log ``amb.kernel.audit``, to the function `audit_sink`, and to `audit_topic` (None: to no
    topic). `stop_timeout`: seconds that one agent's end may take.

    Its verbs are those of `AgentKernel`, with the kernel's own name, except while an agent's code runs: what that does
    through the kernel, it does as the agent. The kernel starts with its first verb, with ``start()`` or ``async with``.
    Raises: ConfigurationError.
    """

    def __init__(
        self,
        policies: Sequence[Policy] = (),
        message_bus: MessageBus | None = None,
        *,
        name: str = "kernel",
        roles: Sequence[str] = (),
        default_action: Action = "allow",
        audit_topic: str | None = "kernel.audit",
        audit_sink: Sink | None = None,
        stop_timeout: float = 10.0,
    ) -> None:
        if default_action not in ("allow", "deny"):
            raise ConfigurationError(f"default_action is 'allow' or 'deny', not {default_action!r}")
        if audit_topic is not None:
            validate_topic(audit_topic)
        for policy in policies:
            if not isinstance(policy, Policy):
                raise ConfigurationError(f"policies is a list of Policy objects, not of {type(policy).__name__}")
            if sum(other.name == policy.name for other in policies) > 1:
                raise ConfigurationError(
                    f"two policies are named {policy.name!r}: errors and records could mean either"
                )
        self._bus = MessageBus("memory") if message_bus is None else message_bus
        self._made_bus = message_bus is None
        who = identity(name, roles)
        auditor = Auditor(f"{name}-{secrets.token_hex(4)}", self._bus, audit_topic, audit_sink)
        self._governor = Governor(self._bus, Rulebook(policies, default_action), auditor)
        self._grace = stop_timeout
        self._life = Life(who, self._governor, _nothing, grace=stop_timeout, keeps=True)
        self._view = AgentKernel(who, self._life, self._governor)
        self._agents: dict[str, Life] = {}
        self._task: object = None
        self._group: TaskGroup | None = None
        self._stopped = self._owns_bus = False
        self._failure: BaseException | None = None
        #: Set when it has started, or could not; None: it does not run.
        self._up: anyio.Event | None = None
        self._stop: anyio.Event
        self._down: anyio.Event

    @property
    def kernel_id(self) -> str:
        """A name of this kernel that no other has."""
        return self._governor.auditor.kernel_id

    @property
    def agents(self) -> Mapping[str, AgentStatus]:
        """How each agent does, by name."""
        return {name: life.status for name, life in self._agents.items()}

    # --- agents

    def agent(self, name: str, *, roles: Sequence[str] = (), restart: RetryPolicy | None = None) -> Callable[[C], C]:
        """Decorator for a class: the kernel makes one instance when it starts (now, if it has), and calls its
        ``run(self, kernel)``, if it has one, with a view bound to `name`. What ``run`` began goes on after it
        returned. If it raises, the agent has crashed: what it began ends, and `restart` says whether and when it is
        started again. In rules it is called `name`, `name` without ``-agent``, and each of `roles`.
        Raises: ConfigurationError; PolicyDenied in an agent's code."""

        def decorate(cls: C) -> C:
            if not isinstance(cls, type):
                raise TypeError(
                    f"@kernel.agent decorates a class, not {cls!r}; for a function there is @kernel.register"
                )
            if hasattr(cls, "run"):
                check_hook(cls.run, 2, "self and the kernel")
            life, view = self._admit(name, roles, lambda: begin(), restart)
            act_as(view, cls)

            async def begin() -> None:
                token = current.set(view)
                try:
                    instance: Any = cls()
                    if hasattr(instance, "run"):
                        await instance.run(view)
                finally:
                    current.reset(token)

            if self._group is not None:
                self._group.start_soon(life.live)
            return cls

        return decorate

    @overload
    def register(self, function: F) -> F: ...
    @overload
    def register(self, *, name: str = "", roles: Sequence[str] = ()) -> Callable[[F], F]: ...
    def register(self, function: Any = None, *, name: str = "", roles: Sequence[str] = ()) -> Any:
        """Decorator for a function: calling it runs it as an agent, named `name` or like the function."""

        def decorate(function: F) -> F:
            return acting(self.as_agent(name or function.__name__, roles), function)

        return decorate if function is None else decorate(function)

    def as_agent(self, name: str, roles: Sequence[str] = ()) -> AgentKernel:
        """A view for code that is no agent's class, such as a web server's. What it begins ends with the kernel.
        Raises: ConfigurationError; PolicyDenied in an agent's code."""
        self._check_program(name)
        return AgentKernel(identity(name, roles), self._life, self._governor)

    def _admit(
        self, name: str, roles: Sequence[str], begin: Callable[[], Any], restart: RetryPolicy | None
    ) -> tuple[Life, AgentKernel]:
        self._check_program(name)
        who = identity(name, roles)
        if name in self._agents or name == self._view.name:
            raise ConfigurationError(f"there is an agent {name!r} already: names are principals, give it another")
        life = Life(who, self._governor, begin, grace=self._grace, restart=restart)
        self._agents[name] = life
        return life, AgentKernel(who, life, self._governor)

    def _check_program(self, name: str) -> None:
        """An agent that could make another could have any name and role."""
        actor = self._actor
        if actor is not self._view:
            why = (
                f"{actor.name!r} may not become or make {name!r}: agents are made by the program, outside of their code"
            )
            self._life.spawn(lambda: self._governor.auditor.note("denied", actor.name, detail={"why": why}))
            raise PolicyDenied(why)

    def _life_of(self, name: str) -> Life:
        if name not in self._agents:
            known = ", ".join(sorted(self._agents)) or "none"
            raise ValueError(f"no agent {name!r}; the agents are: {known}")
        return self._agents[name]

    async def stop_agent(self, name: str) -> None:
        """Stop one agent: its ``run`` is cancelled, what it began ends. Raises: ValueError."""
        await self._life_of(name).stop()

    async def start_agent(self, name: str) -> None:
        """Start an agent that has stopped or crashed for good; one that lives goes on. Raises: ValueError."""
        life = self._life_of(name)
        await self._ensure()
        if self._group is not None and not life.alive:
            self._group.start_soon(life.live)

    # --- lifecycle

    async def start(self) -> None:
        """Connect the bus, and start the kernel and every agent. Idempotent. Raises: as `MessageBus.connect`, and what
        the kernel's own subscriptions raise."""
        if self._up is None:
            self._up, self._stop, self._down = anyio.Event(), anyio.Event(), anyio.Event()
            self._stopped, self._failure = False, None
            self._task = spawn(self._main, "amb-kernel")
        await self._up.wait()
        if self._failure is not None:
            raise self._failure

    async def _main(self) -> None:
        """The host task: nobody's child, so that one task may start the kernel and another stop it."""
        assert self._up is not None
        up = self._up
        try:
            self._owns_bus = self._made_bus or not self._bus.connected
            await self._bus.connect()
            async with anyio.create_task_group() as self._group:
                await self._serve(self._group, up)
        except Exception as error:
            self._failure = self._life.error or error
        finally:
            self._group, self._up, self._stopped = None, None, self._failure is None
            await self._leave_bus()
            for event in (up, self._stop, self._down):
                event.set()

    async def _leave_bus(self) -> None:
        try:
            if self._owns_bus:
                await self._bus.disconnect()
        except Exception as error:  # what had stopped it
            self._failure = self._failure or error

    async def _serve(self, group: TaskGroup, up: anyio.Event) -> None:
        await group.start(self._life.live)
        for life in self._agents.values():
            group.start_soon(life.live)
        up.set()
        await self._stop.wait()
        for life in reversed(list(self._agents.values())):
            await life.stop()
        await self._life.stop()
        group.cancel_scope.cancel()  # an agent may have come meanwhile

    async def stop(self) -> None:
        """Stop every agent and then the kernel, and disconnect the bus if the kernel connected it. Idempotent, from any
        task; from inside an agent's code or a handler it returns at once, and the kernel stops after that. Raises what
        stopped the bus before."""
        if self._up is None:
            return
        await self._up.wait()
        self._stop.set()
        if current.get() is None:
            await self._down.wait()
            if self._failure is not None:
                raise self._failure

    async def __aenter__(self) -> KernelSpace:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.stop()

    async def run_forever(self) -> None:
        """Run until SIGINT, SIGTERM or ``stop()``; then stop cleanly and return. Raises: as `start`."""
        async with self, anyio.create_task_group() as group:
            group.start_soon(self._stop_on_signal)
            await self._stop.wait()
            group.cancel_scope.cancel()

    async def _stop_on_signal(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                self._stop.set()

    async def _ensure(self) -> None:
        if self._stopped:
            raise KernelNotRunning("the kernel was stopped: call start(), or use `async with kernel`")
        await self.start()

    # --- the verbs of AgentKernel

    @property
    def _actor(self) -> AgentKernel:
        """Whose code is running."""
        view = current.get()
        return self._view if view is None or view.kernel_id != self.kernel_id else view

    async def _after_start(self, verb: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
        await self._ensure()
        return await verb(*arguments, **options)

    def publish(
        self, topic_or_message: str | Message | None = None, message: Any = None, **options: Any
    ) -> Coroutine[Any, Any, str]:
        """See `AgentKernel.publish`."""
        return self._after_start(self._actor.publish, topic_or_message, message, **options)

    def request(
        self, topic: str | Message, message: Any = None, timeout: float = 30.0, **options: Any
    ) -> Coroutine[Any, Any, Message]:
        """See `AgentKernel.request`."""
        return self._after_start(self._actor.request, topic, message, timeout, **options)

    def elect_leader(self, topic: str, ttl: float = 30.0, *, wait: bool = False) -> Coroutine[Any, Any, Leadership]:
        """See `AgentKernel.elect_leader`."""
        return self._after_start(self._actor.elect_leader, topic, ttl, wait=wait)

    @overload
    def subscribe(self, topic: str, **options: Any) -> Callable[[F], F]: ...
    @overload
    def subscribe(self, topic: str, handler: Handler, **options: Any) -> Awaitable[KernelSubscription]: ...
    def subscribe(self, topic: str, handler: Any = None, **options: Any) -> Any:
        """See `AgentKernel.subscribe`."""
        if handler is None:
            return self._actor.subscribe(topic, **options)
        return self._after_start(self._actor.subscribe, topic, handler, **options)

    async def unsubscribe(self, what: str | Callable[..., Any]) -> None:
        """See `AgentKernel.unsubscribe`."""
        await self._actor.unsubscribe(what)

    def on_message(self, topic: str, **options: Any) -> Callable[[F], F]:
        """See `AgentKernel.on_message`."""
        return self._actor.on_message(topic, **options)

    def schedule(self, interval: float) -> Callable[[F], F]:
        """See `AgentKernel.schedule`."""
        return self._actor.schedule(interval)

    # --- what every message passes

    def message_validator(self, topic: str) -> Callable[[Hook], Hook]:
        """Decorator: call ``async def validator(message, context)`` before a message on `topic` is delivered. If it
        raises or returns False, the message is refused: not delivered, not tried again, recorded."""

        def decorate(hook: Hook) -> Hook:
            self._governor.add_validator(topic, acting(self._actor, hook))
            return hook

        return decorate

    def message_pipeline(self, topic: str) -> Callable[[Hook], Hook]:
        """Decorator: deliver what ``async def pipeline(message, context)`` returns as the message's data; None leaves
        it as it is. Pipelines run in the order of their making, after the validators. One that raises fails the
        delivery like a handler: it is tried again as the subscription says."""

        def decorate(hook: Hook) -> Hook:
            self._governor.add_pipeline(topic, acting(self._actor, hook))
            return hook

        return decorate


async def _nothing() -> None:
    """The kernel itself has nothing to run."""
