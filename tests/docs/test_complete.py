"""What a user can write or see is in the documentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import amb_core
import click
import msgspec
import pytest
from amb_core import Capabilities, MessageBus, errors, hookspecs, initialize_tracing
from amb_core._advice import INSTALL
from amb_core._assemble import settings_for
from amb_core._bus import _EVENTS, PublishOptions
from amb_core._plugins import registry
from amb_core.cli._app import amb
from amb_core.cli._backends import _backend, _markdown
from amb_core.cli._exit import ExitCode
from amb_core.observability import metrics
from amb_core.observability._durations import HISTOGRAMS
from amb_core.observability._readings import METRICS

from ._page import ROOT, pages

DOCS = ROOT / "docs"
_CODE = re.compile(r"`([^`\n]+)`")
_VARIABLE = re.compile(r"\bAMB_[A-Z]+(?:_[A-Z]+)*\b")
#: Brokers that come with AMB: each has a page that lists its options.
BROKERS = [entry for entry in registry().all("broker") if entry.owner.startswith("amb-")]


def _words(page: Path) -> set[str]:
    """What stands in `code` on a page, and each name in it."""
    found: set[str] = set()
    for code in _CODE.findall(page.read_text()):
        found |= {code, *re.findall(r"[A-Za-z_][\w.]*", code), *re.findall(r"\w+|--[a-z-]+", code)}
    return found


def _missing(names: Iterator[str] | list[str], *names_of_pages: str) -> list[str]:
    known = set[str]().union(*(_words(DOCS / page) for page in names_of_pages))
    return sorted(set(names) - known)


def test_every_option_of_the_bus_is_documented() -> None:
    assert _missing(list(inspect.signature(MessageBus).parameters), "configuration.md") == []


def test_every_option_of_subscribe_is_documented() -> None:
    options = set(inspect.signature(settings_for).parameters) - {"bus", "pattern", "handler", "responds"}
    assert _missing(list(options), "configuration.md") == []


def test_every_option_of_publish_is_documented() -> None:
    assert _missing(list(PublishOptions.__annotations__), "configuration.md") == []


@pytest.mark.parametrize("verb", ["request", "scatter", "request_first", "replay", "dead_letters"])
def test_every_option_of_a_verb_is_documented(verb: str) -> None:
    options = set(inspect.signature(getattr(MessageBus, verb)).parameters) - {"self", "options", "topic", "message"}
    assert _missing(list(options), "requests.md", "delivery.md", "configuration.md") == []


@pytest.mark.parametrize("policy", ["RetryPolicy", "DeadLetterQueue", "CircuitBreaker", "MessageFilter"])
def test_every_option_of_a_policy_is_documented(policy: str) -> None:
    assert _missing(list(getattr(amb_core, policy).__struct_fields__), "configuration.md") == []


@pytest.mark.parametrize("serializer", ["JsonSerializer", "MsgPackSerializer", "ProtobufSerializer", "AvroSerializer"])
def test_every_option_of_a_serializer_is_documented(serializer: str) -> None:
    assert _missing(list(inspect.signature(getattr(amb_core, serializer)).parameters), "configuration.md") == []


@pytest.mark.parametrize("broker", [entry.name for entry in BROKERS])
def test_every_option_of_a_broker_is_documented(broker: str) -> None:
    [entry] = [entry for entry in BROKERS if entry.name == broker]
    assert issubclass(entry.make, msgspec.Struct)  # type: ignore[arg-type]
    assert _missing(list(entry.make.__struct_fields__), f"brokers/{broker}.md") == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in vars(MessageBus) if not name.startswith("_")])
def test_every_verb_is_documented(name: str) -> None:
    everywhere = "\n".join(page.read_text() for page in pages())
    assert re.search(rf"\b{name}\b", everywhere), name


def test_every_public_name_is_documented() -> None:
    everywhere = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert _missing(list(amb_core.__all__), *everywhere) == []


def test_every_error_is_documented() -> None:
    assert _missing(list(errors.__all__), "delivery.md") == []


def test_every_event_and_counter_is_documented() -> None:
    assert _missing([*_EVENTS, *amb_core.Stats.__struct_fields__], "delivery.md") == []


@pytest.mark.parametrize("struct", ["Health", "SubscriptionHealth", "DeadLetter", "DeadInfo"])
def test_every_field_of_what_the_bus_tells_is_documented(struct: str) -> None:
    assert _missing(list(getattr(amb_core, struct).__struct_fields__), "delivery.md") == []


def test_every_attribute_of_a_message_is_documented() -> None:
    attributes = [name for name, value in vars(amb_core.Message).items() if isinstance(value, property)]
    assert _missing(attributes, "configuration.md") == []


def test_every_metric_is_documented() -> None:
    assert _missing([*METRICS, *HISTOGRAMS], "observability.md") == []


@pytest.mark.parametrize("function", [initialize_tracing, metrics.serve, metrics.export])
def test_every_option_of_observing_is_documented(function: Callable[..., object]) -> None:
    assert _missing(list(inspect.signature(function).parameters), "observability.md") == []


def test_every_way_to_record_is_documented() -> None:
    assert _missing([name for name in metrics.__all__ if name != "Endpoint"], "observability.md") == []


def test_every_hook_is_documented() -> None:
    hooks = [name for name in hookspecs.__all__ if name.startswith("amb_")]
    assert hooks
    assert _missing(hooks, "hooks.md") == []


def test_every_environment_variable_is_documented() -> None:
    read: set[str] = set()
    for folder in ("amb-core/src", "amb-redis/src", "tests/servers"):
        for source in (ROOT / folder).rglob("*.py"):
            read |= set(_VARIABLE.findall(source.read_text()))
    assert {"AMB_BROKER", "AMB_SERIALIZER"} <= read
    assert _missing(list(read - _placeholders()), "configuration.md") == []


def _placeholders() -> set[str]:
    """Variables that stand for a broker's options in general, in comments and examples."""
    options = {f"AMB_{entry.name}_{field}".upper() for entry in BROKERS for field in entry.make.__struct_fields__}  # type: ignore[attr-defined]
    return options - {"AMB_REDIS_URL"}


def test_every_capability_is_explained() -> None:
    assert _missing(list(Capabilities.__struct_fields__), "README.md") == []


def test_the_matrix_is_what_the_brokers_declare() -> None:
    table = _markdown([_backend(entry) for entry in BROKERS])
    assert table in (DOCS / "README.md").read_text(), f"put this into docs/README.md:\n{table}"


def _commands() -> Iterator[tuple[str, click.Command]]:
    with click.Context(amb) as context:
        for name in amb.list_commands(context):
            command = amb.get_command(context, name)
            assert command is not None
            yield name, command
            if isinstance(command, click.Group):
                yield from ((f"{name} {verb}", each) for verb, each in command.commands.items())


def test_every_command_is_documented() -> None:
    text = (DOCS / "cli.md").read_text()
    assert [name for name, _ in _commands() if f"amb {name}" not in text] == []


def test_every_option_of_a_command_is_documented() -> None:
    options = {
        option
        for _, command in _commands()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for option in parameter.opts
        if option.startswith("--")
    }
    assert "--workers" in options
    assert _missing(list(options), "cli.md") == []


def test_every_exit_code_is_documented() -> None:
    rows = re.findall(r"^\| (\d+) \|", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in ExitCode]


def test_every_header_of_the_wire_is_documented() -> None:
    written = set[str]()
    for source in (ROOT / "amb-core/src/amb_core").glob("_*.py"):
        written |= set(re.findall(r'"(amb-[a-z-]*[a-z])"', source.read_text()))
    written -= {name for kind in INSTALL.values() for name in kind.values()} | {"amb-core"}
    assert "amb-inbox" in written
    assert _missing(list(written), "wire-format.md") == []
