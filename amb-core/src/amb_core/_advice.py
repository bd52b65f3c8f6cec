"""What AMB's own distributions provide, so that an error can say what to install."""

from __future__ import annotations

from collections.abc import Iterable

#: Kind, name, and what to give to pip.
INSTALL: dict[str, dict[str, str]] = {
    "broker": {
        "redis": "amb-redis",
        "kafka": "amb-kafka",
        "nats": "amb-nats",
        "rabbitmq": "amb-rabbitmq",
        "sqs": "amb-sqs",
        "azure": "amb-azure",
    },
}

#: URL schemes of brokers that may not be installed.
SCHEMES: dict[str, str] = {
    "redis": "redis",
    "rediss": "redis",
    "kafka": "kafka",
    "nats": "nats",
    "tls": "nats",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "sqs": "sqs",
    "sb": "azure",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question in brackets that names the closest known name, or nothing if none is close."""
    from difflib import get_close_matches  # slow to import, and wanted for errors only

    close = get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
