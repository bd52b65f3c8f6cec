"""Options: argument > URL query > environment > default, errors that name their source, secrets that never show."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from amb_core import InMemoryBroker, MessageBus
from amb_core._config import resolve_broker
from amb_core.config import mask_url
from amb_core.errors import ConfigurationError, PluginError

from ._dists import BROKER, dists


@pytest.fixture(autouse=True)
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The broker ``acme`` is installed."""
    with dists(tmp_path, monkeypatch) as installed:
        installed.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": BROKER.replace("NAME", "acme")})
        yield


def made(
    broker: str | None = "acme", url: str | None = None, environ: Mapping[str, str] | None = None, **options: object
) -> Any:
    """The broker for these settings, with no other environment than `environ`."""
    return resolve_broker(broker, url, environ or {}, options)


def refused(
    broker: str | None = "acme", url: str | None = None, environ: Mapping[str, str] | None = None, **options: object
) -> str:
    """What the settings are answered with."""
    with pytest.raises(ConfigurationError) as caught:
        made(broker, url, environ, **options)
    return str(caught.value)


# --- which broker


def test_an_argument_wins_over_the_variable_and_the_variable_over_memory() -> None:
    assert type(made("memory", environ={"AMB_BROKER": "acme"})).__name__ == "InMemoryBroker"
    assert type(made(None, environ={"AMB_BROKER": "acme"})).__name__ == "AcmeBroker"
    assert type(made(None, environ={"AMB_BROKER": "acme://there"})).__name__ == "AcmeBroker"
    assert type(made(None, environ={"AMB_BROKER": ""})).__name__ == "InMemoryBroker"
    assert type(made(None)).__name__ == "InMemoryBroker"


def test_the_bus_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMB_BROKER", "acme")
    monkeypatch.setenv("AMB_ACME_POOL_SIZE", "9")
    assert MessageBus().broker.pool_size == 9  # type: ignore[attr-defined]
    assert isinstance(MessageBus("memory").broker, InMemoryBroker)


def test_a_url_alone_names_its_broker() -> None:
    assert made(None, "acme://there:1").url == "acme://there:1"


# --- the order


def test_argument_then_url_then_variable_then_default() -> None:
    environ = {"AMB_ACME_POOL_SIZE": "1"}
    assert made().pool_size == 4
    assert made(environ=environ).pool_size == 1
    assert made(url="acme://h?pool_size=2", environ=environ).pool_size == 2
    assert made(url="acme://h?pool_size=2", environ=environ, pool_size=3).pool_size == 3


def test_a_registered_variable_counts_where_ours_is_not_set() -> None:
    assert made(environ={"ACME_ADDRESS": "acme://a"}).url == "acme://a"
    assert made(environ={"ACME_ADDRESS": "acme://a", "AMB_ACME_URL": "acme://b"}).url == "acme://b"
    assert made(url="acme://c", environ={"AMB_ACME_URL": "acme://b"}).url == "acme://c"


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert made(environ={"AMB_ACME_POOL_SIZE": ""}).pool_size == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), ("yes", True), ("On", True), ("false", False), ("0", False), ("off", False)],
)
def test_booleans_are_written_as_people_write_them(text: str, value: bool) -> None:
    assert made(environ={"AMB_ACME_DURABLE": text}).durable is value


@pytest.mark.parametrize("text", ["a:1, b:2", '["a:1", "b:2"]'])
def test_lists_are_written_with_commas_or_as_json(text: str) -> None:
    assert made(environ={"AMB_ACME_NODES": text}).nodes == ["a:1", "b:2"]


# --- errors name their source


def test_a_wrong_value_is_answered_with_where_it_came_from() -> None:
    assert "AMB_ACME_POOL_SIZE of the acme broker" in refused(environ={"AMB_ACME_POOL_SIZE": "many"})
    assert "URL parameter 'pool_size' of the acme broker" in refused(url="acme://h?pool_size=many")
    assert "option 'pool_size' of the acme broker" in refused(pool_size="many")
    assert "many" in refused(pool_size="many")
    assert "ACME_ADDRESS" not in refused(environ={"ACME_ADDRESS": "acme://h", "AMB_ACME_DURABLE": "perhaps"})


def test_an_unknown_option_is_answered_with_the_closest_and_all_others() -> None:
    for text in (refused(pol_size=1), refused(url="acme://h?pol_size=1")):
        assert "(did you mean 'pool_size'?)" in text
        assert "its options: url, password, pool_size, durable, nodes" in text
    assert "did you mean AMB_ACME_POOL_SIZE?" in refused(environ={"AMB_ACME_POOLSIZE": "1"})


def test_variables_of_others_that_begin_like_ours_are_left_alone() -> None:
    assert made(environ={"AMB_ACME_SERVICE_HOST": "10.0.0.1", "AMB_ACME_PORT": "tcp://10.0.0.1:80"}).pool_size == 4


def test_contradictions_are_refused() -> None:
    assert "given twice" in refused(url="acme://h?pool_size=1&pool_size=2")
    assert "is a URL already" in refused("acme://h", url="acme://i")
    assert "is for the broker 'redis', but the broker is 'acme'" in refused("acme", url="redis://h")
    assert "name it as well" in refused(None, url="h:1")
    with pytest.raises(TypeError, match="already has its options"):
        MessageBus(InMemoryBroker(), broker_url="acme://h")
    with pytest.raises(TypeError, match="two names of one argument"):
        MessageBus("acme", adapter="acme")


def test_what_is_no_broker_is_refused_with_what_is_one() -> None:
    with pytest.raises(TypeError, match="is a class: give the bus an instance"):
        MessageBus(InMemoryBroker)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a int is no broker, it has no capabilities and no connect"):
        MessageBus(7)  # type: ignore[arg-type]


def test_the_constructor_checks_its_types_too() -> None:
    cls = type(made())
    with pytest.raises(ConfigurationError, match="AcmeBroker: option 'pool_size'"):
        cls(pool_size="many")
    with pytest.raises(TypeError, match="pol_size"):
        cls(pol_size=1)


# --- secrets


SECRET = "geh/ei@m"


@pytest.mark.parametrize(
    "settings",
    [
        {"password": SECRET},
        {"environ": {"AMB_ACME_PASSWORD": SECRET}},
        {"url": f"acme://user:{SECRET}@h/1"},
        {"url": "acme://geheim@h/1"},
        {"url": "acme://h?password=" + SECRET},
        {"nodes": [f"acme://user:{SECRET}@h/1"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_secrets_show_in_no_repr_and_in_no_bus(settings: dict[str, Any]) -> None:
    broker = made(**settings)
    shown = f"{broker!r} {broker} {MessageBus(broker)!r}"
    assert SECRET not in shown and "geheim" not in shown
    assert "***" in repr(broker)


@pytest.mark.parametrize(
    "settings",
    [
        {"password": 7},
        {"environ": {"AMB_ACME_PASSWORD": SECRET, "AMB_ACME_POOL_SIZE": "many"}},
        {"url": f"acme://user:{SECRET}@h?pool_size=many"},
        {"url": f"acme://user:{SECRET}@h?pol_size=1"},
        {"url": f"redis://user:{SECRET}@h"},
        {"broker": f"acme://user:{SECRET}@h", "url": f"acme://user:{SECRET}@h"},
        {"broker": f"acmee://user:{SECRET}@h"},
        {"nodes": f"acme://user:{SECRET}@h", "pool_size": f"acme://user:{SECRET}@h"},
    ],
    ids=str,
)
def test_secrets_show_in_no_error(settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises((ConfigurationError, PluginError)) as caught:
        made(**settings)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SECRET not in str(chain)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user:pw@h", "redis://user:***@h"),
        ("redis://:pw@h", "redis://:***@h"),
        ("nats://token@h", "nats://***@h"),
        ("redis://user:p@w/d@h:1", "redis://user:***@h:1"),
        ("nats://a:b@h,nats://c:d@i", "nats://a:***@h,nats://c:***@i"),
        ("kafka://h?sasl_password=pw&x=1", "kafka://h?sasl_password=***&x=1"),
        (
            "Endpoint=sb://x/;SharedAccessKeyName=me;SharedAccessKey=abc=",
            "Endpoint=sb://x/;SharedAccessKeyName=me;SharedAccessKey=***",
        ),
    ],
)
def test_a_masked_url_keeps_what_is_no_secret(url: str, masked: str) -> None:
    assert mask_url(url) == masked
