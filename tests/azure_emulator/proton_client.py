"""Run by the system's Python, which has Qpid Proton: does what it is told, and prints what came of it as JSON."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from typing import Any

# Only the system's Python has it, which the type checker does not ask.
proton: Any = import_module("proton")
utils: Any = import_module("proton.utils")


def settle(connection: Any, queue: str) -> object:
    """Release, fail, fail and reject the same message, with all that a message can have."""
    sender = connection.create_sender(queue)
    body = {"list": [1, 2.5, None, True], "text": "Zoë"}
    properties = {"int": proton.int32(-7), "ulong": proton.ulong(2**63), "text": "x"}
    annotations = {proton.symbol("x-own"): "kept"}
    sent = proton.Message(body, properties=properties, annotations=annotations, priority=9, ttl=60, subject="s")
    sent.id = proton.ulong(42)
    accepted = sender.send(sent).remote_state == proton.Delivery.ACCEPTED
    receiver = connection.create_receiver(queue, credit=1)
    counts: list[int] = []
    message: Any = None
    for failed, state in ((False, "RELEASED"), (True, "MODIFIED"), (True, "MODIFIED"), (False, "REJECTED")):
        message = receiver.receive(timeout=5)
        counts.append(message.delivery_count)
        receiver.fetcher.unsettled[-1].local.failed = failed
        receiver.settle(getattr(proton.Delivery, state))
    receiver.close()
    dead = connection.create_receiver(queue + "/$DeadLetterQueue", credit=1)
    buried = dead.receive(timeout=5)
    dead.accept()
    same = buried.body == message.body == body and dict(buried.properties) == dict(message.properties) == properties
    return {
        "accepted": accepted, "counts": counts, "same": same, "id": buried.id, "priority": buried.priority,
        "ttl": buried.ttl, "subject": buried.subject, "own": message.annotations[proton.symbol("x-own")],
        "number": message.annotations[proton.symbol("x-opt-sequence-number")],
    }  # fmt: skip


def large(connection: Any, queue: str) -> object:
    """Messages of many small frames, both ways, and one that is too large."""
    sender, receiver = connection.create_sender(queue), connection.create_receiver(queue, credit=5)
    body = bytes(range(256)) * 500
    for _ in range(3):
        sender.send(proton.Message(body))
    same = []
    for _ in range(3):
        same.append(receiver.receive(timeout=5).body == body)
        receiver.accept()
    try:
        sender.send(proton.Message(body * 3))
    except utils.SendException as error:
        return {"same": same, "refused": error.state == proton.Delivery.REJECTED}
    return {"same": same, "refused": False}


def request(connection: Any, queue: str) -> object:
    """Requests to the management of a queue."""
    node = queue + "/$management"
    answers, asks = connection.create_receiver(node, credit=5), connection.create_sender(node)
    connection.create_sender(queue).send(proton.Message("x"))
    peek = {"from-sequence-number": 0, "message-count": proton.int32(5)}
    found = []
    for number, (operation, body) in enumerate((("peek-message", peek), ("nonsense", {}), ("renew-lock", peek)), 1):
        asks.send(proton.Message(body, id=number, properties={"operation": "com.microsoft:" + operation}))
        answer = answers.receive(timeout=5)
        found.append([answer.correlation_id, answer.properties["statusCode"], answer.properties.get("errorCondition")])
    receiver = connection.create_receiver(queue, credit=1)
    receiver.receive(timeout=5)
    receiver.accept()
    return found


def rules(connection: Any, entity: str) -> object:
    """Rules by the management of a subscription: added, shown and removed."""
    node = entity + "/$management"
    answers, asks = connection.create_receiver(node, credit=5), connection.create_sender(node)
    sql = {"rule-name": "sql", "rule-description": {"sql-filter": {"expression": "a = 1"}}}
    same = {"rule-name": "same", "rule-description": {"correlation-filter": {"label": "x", "properties": {"p": "q"}}}}
    wrong = {"rule-name": "wrong", "rule-description": {"sql-filter": {"expression": "a ="}}}
    asked = [("add-rule", sql), ("add-rule", sql), ("add-rule", same), ("add-rule", wrong)]
    asked += [("remove-rule", {"rule-name": "$Default"}), ("remove-rule", {"rule-name": "none"})]
    found: list[int] = []
    answer: Any = None
    for operation, body in [*asked, ("enumerate-rules", {"skip": proton.int32(0), "top": proton.int32(9)})]:
        asks.send(proton.Message(body, id="id", properties={"operation": "com.microsoft:" + operation}))
        answer = answers.receive(timeout=5)
        found.append(answer.properties["statusCode"])
    described: Any = [rule["rule-description"].value for rule in answer.body["rules"]]
    return [found, [[each[2], int(each[0].descriptor), each[0].value[:1]] for each in described]]


def refused(connection: Any, queue: str) -> object:
    """Links to what is not there."""
    found = []
    for make in (connection.create_sender, connection.create_receiver):
        try:
            make(queue + "-none")
        except utils.LinkDetached as error:
            found.append(error.condition)
    return found


def beat(connection: Any, queue: str) -> object:
    """Stay without a word for three times as long as the connection may be silent."""
    receiver = connection.create_receiver(queue, credit=1)
    began = time.monotonic()
    try:
        receiver.receive(timeout=9)
    except proton.Timeout:
        return time.monotonic() - began
    return 0


if __name__ == "__main__":
    _, what, url, entity = sys.argv
    options = {"heartbeat": 3} if what == "beat" else {"max_frame_size": 1024}
    opened = utils.BlockingConnection(url, timeout=10, **options)
    print(json.dumps(globals()[what](opened, entity)))
    opened.close()
