"""The service: which link a client gets for an address, and what it may do there."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from .auth import LISTEN, MANAGE, SEND, Auth, path_of
from .codec import Described, Int, Symbol
from .entities import Namespace
from .entry import Refusal
from .frames import Attach
from .journal import Journal
from .links import Answers, Inlet, Receiver
from .management import manage
from .message import Content, body_of, parse, parse_all, response
from .queue import Queue
from .session import AmqpSession
from .sessions import Session
from .topics import Topic

CBS = "$cbs"
_MANAGEMENT = "/$management"
_FILTER = "com.microsoft:session-filter"
_TIMEOUT = "com.microsoft:timeout"
_LOCKED_UNTIL = "com.microsoft:locked-until-utc"
#: 1970 in .NET's ticks, of which a second has ten million.
_EPOCH, _TICKS = 621355968000000000, 10_000_000
Request = Callable[[AmqpSession, Content], tuple[dict[str, object], object]]


class Service:
    """A namespace with its rules of access."""

    def __init__(self, namespace: Namespace, auth: Auth, journal: Journal, largest: int) -> None:
        self.namespace, self.auth, self.journal, self.largest = namespace, auth, journal, largest

    def attach(self, session: AmqpSession, attach: Attach) -> None:
        """Answer an attach. Raises: Refusal."""
        # The role is the client's: True is a receiver.
        path = path_of(_address(attach.source if attach.role else attach.target))
        if path == CBS or path.lower().endswith(_MANAGEMENT):
            self._attach_requests(session, attach, path.lower())
        elif attach.role:
            self._attach_receiver(session, attach, path)
        else:
            self._attach_sender(session, attach, path)

    def _attach_sender(self, session: AmqpSession, attach: Attach, path: str) -> None:
        self._allow(session, path, SEND)
        self.namespace.target(path)

        def sink(message_format: int | None, data: bytes) -> None:
            contents = parse_all(message_format, data)
            target = self.namespace.target(path)
            for content in contents:
                target.check(content)
            for content in contents:
                target.put(content)

        self._add_inlet(session, attach, Inlet(session, attach, sink, self.largest))

    def _add_inlet(self, session: AmqpSession, attach: Attach, inlet: Inlet) -> None:
        session.send(
            Attach(
                attach.name, attach.handle, True, attach.snd_settle_mode, attach.rcv_settle_mode, attach.source,
                attach.target, max_message_size=self.largest,
            )
        )  # fmt: skip
        session.add(inlet)
        inlet.grant()

    def _attach_receiver(self, session: AmqpSession, attach: Attach, path: str) -> None:
        self._allow(session, path, LISTEN)
        queue = self.namespace.source(path)
        receiver = Receiver(session, attach, queue)
        wanted = _session_filter(attach)
        if (wanted is None) is not (queue.sessions is None):
            kind = "requires sessions" if queue.sessions is not None else "does not support sessions"
            raise Refusal("amqp:not-allowed", f"The entity '{path}' {kind}; the receiver does not fit it.")
        if queue.sessions is None or wanted is None:
            self._accept(session, attach, receiver)
        elif wanted[0] is not None:
            self._accept(session, attach, receiver, queue.sessions.lock(wanted[0], receiver))
        else:
            self._wait_for_session(session, attach, receiver)

    def _wait_for_session(self, session: AmqpSession, attach: Attach, receiver: Receiver) -> None:
        def done(found: Session | Refusal) -> None:
            if isinstance(found, Refusal):
                session.refuse(attach, found)
            else:
                self._accept(session, attach, receiver, found)

        assert receiver.queue.sessions is not None
        timeout = (attach.properties or {}).get(_TIMEOUT)
        seconds = timeout / 1000 if isinstance(timeout, int) else 60.0
        # If the client gives up, its detach ends the waiting.
        session.add(receiver)
        receiver.queue.sessions.wait(receiver, done, seconds)

    def _accept(self, session: AmqpSession, attach: Attach, receiver: Receiver, locked: Session | None = None) -> None:
        properties: dict[object, object] | None = None
        if locked is not None:
            properties = {Symbol(_LOCKED_UNTIL): int(locked.locked_until * _TICKS) + _EPOCH}
            _fill_filter(attach, locked.id)
        session.send(
            Attach(
                attach.name, attach.handle, False, attach.snd_settle_mode, attach.rcv_settle_mode, attach.source,
                attach.target, None, None, 0, self.largest, properties=properties,
            )
        )  # fmt: skip
        session.add(receiver)
        receiver.queue.consumers.append(receiver)

    def _attach_requests(self, session: AmqpSession, attach: Attach, path: str) -> None:
        if attach.role:
            session.answers[path] = Answers(session, attach)
            session.send(
                Attach(
                    attach.name, attach.handle, False, attach.snd_settle_mode, attach.rcv_settle_mode, attach.source,
                    attach.target, initial_delivery_count=0,
                )
            )  # fmt: skip
            session.add(session.answers[path])
            return
        handle = self._put_token if path == CBS else self._managing(session, path.removesuffix(_MANAGEMENT))

        def sink(message_format: int | None, data: bytes) -> None:
            request = parse(data)
            application, body = handle(session, request)
            answers = session.answers.get(path)
            if answers is None:
                raise Refusal("amqp:not-allowed", f"There is no link for the answers of '{path}'.")
            answers.answer(response(application, request.properties.get("message_id"), body))

        self._add_inlet(session, attach, Inlet(session, attach, sink, 2**31))

    def _put_token(self, session: AmqpSession, request: Content) -> tuple[dict[str, object], object]:
        audience = str(request.application_value("name"))
        try:
            rights = self.auth.rights(str(body_of(request)), audience)
        except Refusal as refusal:
            return {"status-code": Int(refusal.status), "status-description": refusal.description}, None
        session.connection.claims[path_of(audience).lower()] = rights
        return {"status-code": Int(202), "status-description": "Accepted"}, None

    def _managing(self, session: AmqpSession, path: str) -> Request:
        node: Queue | Topic = self._node(path)
        self._allow(session, path, None)

        def request(session: AmqpSession, content: Content) -> tuple[dict[str, object], object]:
            try:
                status, body = manage(self.namespace, path, node, content, session.connection)
            except Refusal as refusal:
                return {
                    "statusCode": Int(refusal.status), "statusDescription": refusal.description,
                    "errorCondition": Symbol(refusal.condition),
                }, None  # fmt: skip
            return {"statusCode": Int(status), "statusDescription": "OK"}, body

        return request

    def _node(self, path: str) -> Queue | Topic:
        try:
            return self.namespace.source(path)
        except Refusal:
            return self.namespace.target(path)

    def _allow(self, session: AmqpSession, path: str, right: str | None) -> None:
        if self.auth.open:
            return
        allowed = {
            each for claim, rights in session.connection.claims.items() if path.lower().startswith(claim)
            for each in rights
        }  # fmt: skip
        if not allowed or not (right is None or right in allowed or MANAGE in allowed):
            raise Refusal(
                "amqp:unauthorized-access", f"Unauthorized access. '{right}' claim(s) are required on '{path}'.", 401
            )


def _fields(terminus: object) -> list[object]:
    return cast("list[object]", terminus.value) if isinstance(terminus, Described) else []


def _address(terminus: object) -> str:
    fields = _fields(terminus)
    if not fields or not fields[0]:
        raise Refusal("amqp:invalid-field", "The link has no address.")
    return str(fields[0])


def _session_filter(attach: Attach) -> tuple[str | None] | None:
    """The session that is asked for: any (None), or none at all."""
    fields = _fields(attach.source)
    filters = fields[7] if len(fields) > 7 else None
    if not isinstance(filters, dict) or _FILTER not in filters:
        return None
    given = filters[_FILTER]
    value = given.value if isinstance(given, Described) else given
    return (None if value is None else str(value),)


def _fill_filter(attach: Attach, session_id: str) -> None:
    filters = cast("dict[object, object]", _fields(attach.source)[7])
    given = filters.pop(_FILTER)
    filters[Symbol(_FILTER)] = Described(given.descriptor, session_id) if isinstance(given, Described) else session_id
