"""Who watches a bus: the one seam between what happens and traces or metrics of it.

Nobody watches until somebody is added with `observe`; a bus asks once, when it connects, and then has an observer
or None. What is counted anyway (`Stats`) is read from `hosts` when somebody wants to know.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from .broker import Incoming, Outgoing, Settlement, Source

if TYPE_CHECKING:
    from ._handlers import Handler
    from ._lifecycle import Host, Stats
    from ._message import Message


class Observer(Protocol):
    """Is told what one bus does, in the task that does it. Does not block; raises nothing of its own."""

    def sending(self, batch: Sequence[Outgoing]) -> AbstractContextManager[None]:
        """Around handing messages to the broker, until it has answered. May change their headers."""
        ...

    def received(self, source: Source, batch: Sequence[Incoming], began: int) -> None:
        """The broker handed over `batch`; it was asked at `began`, in nanoseconds since the epoch."""
        ...

    def handling(self, source: Source, batch: Sequence[Incoming]) -> AbstractContextManager[None]:
        """Around one call of a handler, in the context that is this call's own."""
        ...

    def settling(
        self, source: Source, batch: Sequence[Incoming], told: Sequence[Settlement]
    ) -> AbstractContextManager[None]:
        """Around telling the broker what became of `batch`."""
        ...


#: What makes an observer for a bus, given its broker's `system_of`.
_makers: dict[str, Callable[[str], Observer]] = {}
#: Every bus that has connected and still exists.
hosts: weakref.WeakValueDictionary[int, Host] = weakref.WeakValueDictionary()
#: What buses had counted that exist no more, by the class of their broker: a counter never falls.
departed: dict[type, Stats] = {}


def observe(name: str, make: Callable[[str], Observer] | None) -> None:
    """From now on each bus that connects has such an observer; None: not any more."""
    if make is None:
        _makers.pop(name, None)
    else:
        _makers[name] = make


def observer_for(host: Host) -> Observer | None:
    """The observer of a bus that connects; None while nobody watches."""
    if id(host) not in hosts:
        hosts[id(host)] = host
        weakref.finalize(host, _departs, type(host.broker), host.stats).atexit = False
    if not _makers:
        return None
    observers = [make(system_of(type(host.broker))) for make in _makers.values()]
    return observers[0] if len(observers) == 1 else Several(observers)


def _departs(broker: type, stats: Stats) -> None:
    total = departed.setdefault(broker, type(stats)())
    for field in stats.__struct_fields__:
        setattr(total, field, getattr(total, field) + getattr(stats, field))


@cache
def system_of(broker: type) -> str:
    """What a broker is called in traces and metrics: what it says itself (`messaging_system`), else the name that it
    is registered under."""
    from ._plugins import installed_brokers

    declared = getattr(broker, "messaging_system", None)
    if isinstance(declared, str):
        return declared
    names = [name for name, make in installed_brokers() if make is broker]
    return names[0] if names else broker.__name__.removesuffix("Broker").lower()


class Several:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    @contextmanager
    def _all(self, enter: Callable[[Observer], AbstractContextManager[None]]) -> Iterator[None]:
        with ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(enter(observer))
            yield

    def sending(self, batch: Sequence[Outgoing]) -> AbstractContextManager[None]:
        """See `Observer`."""
        return self._all(lambda observer: observer.sending(batch))

    def received(self, source: Source, batch: Sequence[Incoming], began: int) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.received(source, batch, began)

    def handling(self, source: Source, batch: Sequence[Incoming]) -> AbstractContextManager[None]:
        """See `Observer`."""
        return self._all(lambda observer: observer.handling(source, batch))

    def settling(
        self, source: Source, batch: Sequence[Incoming], told: Sequence[Settlement]
    ) -> AbstractContextManager[None]:
        """See `Observer`."""
        return self._all(lambda observer: observer.settling(source, batch, told))


def observed(handler: Handler, observer: Observer, source: Source) -> Handler:
    """`handler` with `observer` around each call. It gets messages, whatever the handler takes."""
    inner, bare = handler.call, handler.bare

    async def call(argument: Message | list[Message], *more: Any) -> Any:
        messages = argument if isinstance(argument, list) else [argument]
        with observer.handling(source, [message._incoming for message in messages if message._incoming is not None]):
            if not bare:
                return await inner(argument, *more)
            data = [message.data for message in messages]
            return await inner(data if isinstance(argument, list) else data[0], *more)

    return msgspec.structs.replace(handler, call=call, bare=False)
