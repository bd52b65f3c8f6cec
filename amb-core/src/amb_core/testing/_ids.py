"""The frozen list of what a broker must do. A suite that lacks one of these is not the suite."""

from __future__ import annotations

#: How many cases each section has.
SECTIONS = {
    "A": 15,  # publish and subscribe
    "B": 10,  # wildcards
    "C": 8,  # groups
    "D": 15,  # settling and redelivery
    "E": 11,  # retries, dead letters, time to live, breaker
    "F": 6,  # order
    "G": 12,  # durability and reconnecting
    "H": 12,  # requests
    "I": 9,  # headers and bodies
    "J": 6,  # serialization
    "K": 6,  # concurrency
    "L": 11,  # shutdown
    "M": 7,  # backpressure and priority
    "N": 8,  # errors and health
    "O": 3,  # elections
}

#: Every case id, in the order of the list.
IDS: tuple[str, ...] = tuple(
    f"{letter}{number}" for letter, count in SECTIONS.items() for number in range(1, count + 1)
)
