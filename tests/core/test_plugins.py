"""Finding plugins: the four errors that say what to do, and nothing loaded that was not named."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from amb_core import Message, MessageBus, MessageFilter, RetryPolicy
from amb_core._plugins import load_commands, load_filter, load_retry_policy, load_serializer, registry
from amb_core.errors import ConfigurationError, PluginError

from ._dists import BROKER, Dists, dists, forget, uninstall

HOOK = "from amb_core.hookspecs import hookimpl\n@hookimpl\ndef "


@pytest.fixture(name="dists")
def _dists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dists]:
    for variable in ("AMB_BROKER", "AMB_SERIALIZER", "AMB_TRACE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    with dists(tmp_path, monkeypatch) as installed:
        yield installed


def broker(name: str) -> str:
    """The source of a plugin module with the broker `name`."""
    return BROKER.replace("NAME", name)


def error_of(name: str) -> PluginError:
    """What a bus says to the broker `name`."""
    with pytest.raises(PluginError) as caught:
        MessageBus(name)
    return caught.value


# --- 1. not installed


@pytest.mark.parametrize(
    ("name", "dist"),
    [
        ("kafka", "amb-kafka"),
        ("nats", "amb-nats"),
        ("rabbitmq", "amb-rabbitmq"),
        ("sqs", "amb-sqs"),
        ("azure", "amb-azure"),
        ("AZURE", "amb-azure"),
        ("kafka://localhost:9092", "amb-kafka"),
        ("amqps://u:geheim@localhost", "amb-rabbitmq"),
    ],
)
def test_a_broker_of_ours_that_is_not_installed_comes_with_its_pip_command(name: str, dist: str, dists: Dists) -> None:
    error = error_of(name)
    assert f"is not installed: pip install {dist}" in str(error)
    assert "geheim" not in str(error)


# --- 2. unknown


def test_an_unknown_broker_is_answered_with_the_closest_name_and_what_is_installed(dists: Dists) -> None:
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": broker("acme")})
    text = str(error_of("acmee"))
    assert "no broker is called 'acmee' (did you mean 'acme'?)" in text
    assert re.search(r"installed: acme, memory\b", text)


def test_a_broker_that_is_not_installed_can_be_what_was_meant(dists: Dists) -> None:
    assert "did you mean 'rabbitmq'?" in str(error_of("rabitmq"))


def test_a_name_like_nothing_is_answered_without_a_guess(dists: Dists) -> None:
    text = str(error_of("xyzzy"))
    assert "did you mean" not in text and "installed: memory" in text


def test_an_unknown_scheme_is_answered_with_the_closest_one(dists: Dists) -> None:
    assert "no installed broker has the URL scheme 'redsi' (did you mean 'redis'?)" in str(
        error_of("redsi://localhost")
    )


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_name_is_unknown_too(empty: str, dists: Dists) -> None:
    assert "no broker is called ''" in str(error_of(empty))


def test_a_filter_that_cannot_be_made_of_its_arguments_is_named(dists: Dists) -> None:
    with pytest.raises(PluginError, match="the filter 'match' of amb-core:builtins could not be made: TypeError"):
        MessageFilter.named("match", headrs={"a": "b"})


def test_unknown_serializers_filters_and_policies_are_answered_alike(dists: Dists) -> None:
    known = r"installed: avro, json"
    with pytest.raises(PluginError, match=rf"no serializer is called 'jsn' \(did you mean 'json'\?\); {known}"):
        load_serializer("jsn")
    with pytest.raises(PluginError, match=r"no filter is called 'mach' \(did you mean 'match'\?\); installed: match"):
        load_filter("mach")
    with pytest.raises(PluginError, match=r"no retry policy is called 'fixd' \(did you mean 'fixed'\?\)"):
        load_retry_policy("fixd")


# --- 3. installed but broken


def test_a_plugin_that_cannot_be_imported_is_named_with_its_cause(dists: Dists) -> None:
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": "import a_library_that_is_missing"})
    error = error_of("acme")
    assert str(error).startswith("the plugin acme-amb:acme is installed but cannot be loaded: ModuleNotFoundError")
    assert "a_library_that_is_missing" in str(error) and "Reinstall or upgrade acme-amb" in str(error)
    assert isinstance(error.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("x = 1", "it has no hooks"),
        ("def amb_register_brokers(register): ...", "put @hookimpl above its function 'amb_register_brokers'"),
        (f"{HOOK}amb_register_broker(register): ...", "amb_register_broker"),
        (f"{HOOK}amb_register_brokers(registrar): ...", "registrar"),
        (f"{HOOK}amb_register_brokers(register): 1 / 0", "division by zero"),
        (f"{HOOK}amb_register_brokers(register): register('acme', dict)", "must be a msgspec.Struct class"),
        (f"{HOOK}amb_register_brokers(register): register('Acme Bus', dict)", "is no name for a broker"),
        (f"{HOOK}amb_register_serializers(register): register('acme', dict, schemes=('a',))", "content_types"),
        (broker("acme").replace('env={"url"', 'env={"adress"'), "lacks: adress"),
        (broker("memory"), "a name that belongs to AMB itself"),
    ],
)
def test_a_plugin_that_registers_nonsense_is_named_with_what_is_wrong(source: str, advice: str, dists: Dists) -> None:
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": source})
    text = str(error_of("acme"))
    assert "acme-amb:acme" in text and advice in text


def test_a_misspelt_hook_fails_by_its_name(dists: Dists) -> None:
    """pluggy's `check_pending`, asked after each plugin."""
    source = f"{broker('acme')}\n@hookimpl\ndef amb_register_serializer(register): ...\n"
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": source})
    text = str(error_of("acme"))
    assert "acme-amb:acme is installed but broken" in text and "'amb_register_serializer'" in text


def test_nothing_of_a_broken_plugin_stays_registered(dists: Dists) -> None:
    source = f"{broker('acme')}\n@hookimpl\ndef amb_register_filters(register): raise OSError('no')\n"
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": source})
    for _ in range(2):
        assert "acme-amb:acme" in str(error_of("acme"))
    assert [entry.name for entry in registry().all("broker") if entry.owner.startswith("acme")] == []


def test_a_broken_plugin_does_not_stand_in_the_way_of_others(dists: Dists) -> None:
    dists.install("broken-amb", {"broken": "broken_plug"}, {"broken_plug": "1 / 0"})
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": broker("acme")})
    assert MessageBus("acme").capabilities.durable
    assert MessageBus("memory").connected is False


def test_whoever_searches_in_vain_hears_which_plugins_could_not_be_searched(dists: Dists) -> None:
    dists.install("broken-amb", {"broken": "broken_plug"}, {"broken_plug": "1 / 0"})
    error = error_of("acme")
    assert "Could not be searched: the plugin broken-amb:broken" in str(error)
    assert isinstance(error.__cause__, PluginError) and isinstance(error.__cause__.__cause__, ZeroDivisionError)


def test_a_factory_that_fails_or_makes_the_wrong_thing_is_named(dists: Dists) -> None:
    source = (
        f"{HOOK}amb_register_serializers(register):\n"
        "    register('none', lambda: None)\n    register('fails', lambda: 1 / 0)\n"
    )
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": source})
    with pytest.raises(PluginError, match="'none' of the plugin acme-amb:acme is broken: a NoneType lacks"):
        load_serializer("none")
    with pytest.raises(PluginError, match="'fails' of acme-amb:acme could not be made: ZeroDivisionError") as caught:
        load_serializer("fails")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# --- 4. claimed twice


def two(dists: Dists, entry: str = "acme") -> None:
    """Two distributions with a broker of the same name."""
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": broker("acme")})
    dists.install(
        "other-amb",
        {entry: "other_plug"},
        {"other_plug": broker("acme").replace("pool_size: int = 4", "pool_size: int = 8")},
    )


def test_a_name_that_two_distributions_claim_is_refused_with_how_to_choose(dists: Dists) -> None:
    two(dists)
    text = str(error_of("acme"))
    assert "the broker 'acme' is claimed by acme-amb:acme and other-amb:acme" in text
    assert "uninstall one, or choose by its full name, 'acme-amb:acme' or 'other-amb:acme'" in text


@pytest.mark.parametrize(("name", "pool"), [("acme-amb:acme", 4), ("other-amb:acme", 8), ("other_amb:acme", 8)])
def test_the_full_name_chooses(name: str, pool: int, dists: Dists) -> None:
    two(dists)
    assert MessageBus(name).broker.pool_size == pool  # type: ignore[attr-defined]


def test_the_full_name_loads_only_its_own_distribution(dists: Dists) -> None:
    two(dists)
    MessageBus("other-amb:acme")
    assert dists.loaded() == {"other_plug"}


def test_two_entry_points_on_one_module_are_no_conflict(dists: Dists) -> None:
    dists.install("acme-amb", {"acme": "acme_plug", "acme2": "acme_plug"}, {"acme_plug": broker("acme")})
    assert [entry.name for entry in registry().all("broker")].count("acme") == 1
    assert MessageBus("acme").capabilities.durable


# --- only what is named is loaded


def test_only_the_entry_point_that_is_named_is_loaded(dists: Dists) -> None:
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": broker("acme")})
    dists.install("umbrella-amb", {"umbrella": "umbrella_plug"}, {"umbrella_plug": broker("umbrella")})
    MessageBus("acme")
    assert dists.loaded() == {"acme_plug"}


@pytest.mark.parametrize("name", ["memory", None])
def test_what_amb_brings_itself_loads_no_plugin(name: str | None, dists: Dists) -> None:
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": broker("acme")})
    MessageBus(name)
    MessageBus(name, serializer="msgpack", retry_policy="fixed")
    assert dists.loaded() == set()


def test_a_name_without_an_entry_point_of_its_own_is_found_in_the_others(dists: Dists) -> None:
    dists.install("acme-amb", {"everything": "acme_plug"}, {"acme_plug": broker("acme")})
    assert MessageBus("acme").capabilities.durable


def test_an_url_scheme_names_its_broker(dists: Dists) -> None:
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": broker("acme")})
    assert MessageBus("acmes://there:1").broker.url == "acmes://there:1"  # type: ignore[attr-defined]


def test_trace_prints_the_calls(
    dists: Dists, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": broker("acme")})
    MessageBus("acme")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("AMB_TRACE_PLUGINS", "1")
    monkeypatch.setattr("amb_core._plugins._registry", None)
    MessageBus("acme")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "amb: " in printed.err and "amb_register_brokers" in printed.err


# --- the other hooks


def test_every_hook_makes_its_thing_known_by_name(dists: Dists) -> None:
    source = """
import click
from amb_core import RetryPolicy
from amb_core.hookspecs import hookimpl
from amb_core.serializers.json import JsonSerializer

@hookimpl
def amb_register_serializers(register):
    register("indented", lambda: JsonSerializer(indent=2), content_types=("application/vnd.acme",))

@hookimpl
def amb_register_filters(register):
    register("longer", lambda than: lambda message: len(message.data) > than)

@hookimpl
def amb_register_retry_policies(register):
    register("patient", lambda times=7: __import__("amb_core").RetryPolicy(max_retries=times))

@hookimpl
def amb_register_commands(register):
    register("hello", lambda: click.Command("hello"), help="Say hello.")
"""
    dists.install("acme-amb", {"acme": "acme_plug"}, {"acme_plug": source})
    assert load_serializer("indented").encode({"a": 1})[0].decode().count("\n") == 2
    assert MessageFilter.named("longer", 2)(Message("t", "abc")) is True
    assert load_retry_policy("patient", times=9) == RetryPolicy(max_retries=9)
    assert MessageBus(retry_policy="patient").retry_policy == RetryPolicy(max_retries=7)
    assert load_commands()["hello"][1] == "Say hello."


# --- the documented import paths


@pytest.mark.parametrize(
    ("where", "name", "dist"),
    [
        ("amb_core", "KafkaBroker", "amb-kafka"),
        ("amb_core.adapters", "NatsBroker", "amb-nats"),
        ("amb_core.adapters", "NATSBroker", "amb-nats"),
        ("amb_core.adapters.nats_broker", "NATSBroker", "amb-nats"),
        ("amb_core.adapters.kafka_broker", "KafkaBroker", "amb-kafka"),
        ("amb_core.adapters.rabbitmq_broker", "RabbitMQBroker", "amb-rabbitmq"),
        ("amb_core.adapters.sqs_broker", "AWSSQSBroker", "amb-sqs"),
        ("amb_core.adapters", "AzureServiceBusBroker", "amb-azure"),
        ("amb_core.adapters.azure_broker", "AzureServiceBusBroker", "amb-azure"),
    ],
)
def test_an_adapter_that_is_not_installed_raises_with_its_pip_command(
    where: str, name: str, dist: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(dist.replace("-", "_"), monkeypatch)
    forget("amb_core.adapters", monkeypatch)
    with pytest.raises(ImportError, match=f"{name} is not installed: pip install {dist}") as caught:
        exec(f"from {where} import {name}", {})
    assert isinstance(caught.value, ConfigurationError)


def test_an_adapter_whose_distribution_is_broken_says_so(
    dists: Dists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget("amb_azure", monkeypatch)
    package = tmp_path / "amb_azure"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "broker.py").write_text("import a_library_that_is_missing")
    try:
        with pytest.raises(
            ImportError, match="amb-azure is installed but cannot be imported: ModuleNotFound"
        ) as caught:
            exec("from amb_core.adapters import AzureServiceBusBroker", {})
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    finally:
        for name in ("amb_azure", "amb_azure.broker"):
            sys.modules.pop(name, None)


def test_an_adapter_that_nobody_knows_is_an_ordinary_import_error() -> None:
    with pytest.raises(ImportError, match="ZeroMqBroker"):
        exec("from amb_core.adapters import ZeroMqBroker", {})
    import amb_core.adapters

    with pytest.raises(AttributeError, match="it has AWSSQSBroker, "):
        _ = amb_core.adapters.ZeroMqBroker
