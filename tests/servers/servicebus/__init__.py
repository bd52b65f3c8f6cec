"""An emulator of the Service Bus protocol: AMQP 1.0, and the administration's Atom XML, on one port.

It has a codec of its own, so that the client under test is not tested against itself. `tests.servers.azure`
starts it for tests, as a process: `python -m tests.servers.servicebus`.

It has no actions of rules, no forwarding, no disabled entities and no transactions: who asks for them is refused. It
has the limits of the standard tier for sizes, names and durations, but no quotas, no throttling and no WebSockets.
"""
