"""Secrets show nowhere: not in a repr, not in an error, not in a log."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from amb_core import MessageBus, RedisBroker
from amb_core.config import mask_url

SECRET = "hunter2-geheim"
BROKERS: dict[str, Any] = {
    "url": lambda: RedisBroker(f"redis://user:{SECRET}@127.0.0.1:1/0"),
    "url, password only": lambda: RedisBroker(f"redis://:{SECRET}@127.0.0.1:1/0"),
    "password": lambda: RedisBroker("redis://127.0.0.1:1/0", password=SECRET),
    "nodes": lambda: RedisBroker(cluster_nodes=[f"redis://:{SECRET}@127.0.0.1:1", f"redis://:{SECRET}@127.0.0.1:2"]),
    "by name": lambda: MessageBus("redis", broker_url=f"redis://u:{SECRET}@127.0.0.1:1").broker,
    "by url": lambda: MessageBus(f"redis://u:{SECRET}@127.0.0.1:1").broker,
}


@pytest.mark.parametrize("make", BROKERS.values(), ids=BROKERS)
def test_a_brokers_repr_masks_its_secrets(make: Any) -> None:
    broker = make()
    for text in (repr(broker), str(broker), f"{broker}"):
        assert SECRET not in text and "***" in text


@pytest.mark.asyncio
@pytest.mark.parametrize("make", BROKERS.values(), ids=BROKERS)
async def test_errors_and_logs_of_a_failing_connection_mask_secrets(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bus = MessageBus(make(), connect_timeout=0.5)
    with pytest.raises(ConnectionError) as caught:
        await bus.connect()
    shown: list[str] = [caplog.text]
    error: BaseException | None = caught.value
    while error is not None:
        shown += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    assert "127.0.0.1" in shown[1]
    assert not [text for text in shown if SECRET in text]


BAD: dict[str, Any] = {
    "unknown parameter": lambda: MessageBus(f"redis://u:{SECRET}@h?colour=red"),
    "two urls": lambda: MessageBus(f"redis://u:{SECRET}@h", broker_url=f"redis://u:{SECRET}@h"),
    "unknown scheme": lambda: MessageBus(f"rediss3://u:{SECRET}@h"),
    "wrong broker": lambda: MessageBus("memory", broker_url=f"redis://u:{SECRET}@h"),
    "wrong type": lambda: RedisBroker(f"redis://u:{SECRET}@h", pool_size="many"),
    "secret of a wrong type": lambda: RedisBroker(password=[SECRET]),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_errors_of_a_bad_configuration_mask_secrets(make: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert SECRET not in str(caught.value) and SECRET not in repr(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@host:1/0",
        f"redis://:{SECRET}@host",
        f"redis://host?password={SECRET}",
        f"amqp://guest:{SECRET}@a,amqp://guest:{SECRET}@b",
        f"Endpoint=sb://x/;SharedAccessKey={SECRET}",
        f"redis://user:with/slash@and-at{SECRET}@host",
    ],
)
def test_a_masked_url_keeps_the_host_and_no_secret(url: str) -> None:
    assert SECRET not in mask_url(url)
