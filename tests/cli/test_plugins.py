"""Commands of installed plugins, found by their entry points."""

from __future__ import annotations

from pathlib import Path

import pytest
from amb_core.cli._exit import ExitCode

from ._amb import Ended, amb

PLUGIN = """
import click

from amb_core.hookspecs import CommandRegister, hookimpl


@hookimpl
def amb_register_commands(register: CommandRegister) -> None:
    register("greet", greet, help="Say hello.")
    register("publish", greet, help="Must not replace AMB's own.")
    register("grumble", lambda: 1 / 0, help="Broken.")


def greet() -> click.Command:
    @click.command()
    @click.argument("name")
    def command(name: str) -> None:
        click.echo(f"hello {name}")

    return command
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """A folder like site-packages, with a plugin in it, on the Python path."""
    (tmp_path / "acme_greet.py").write_text(PLUGIN)
    (tmp_path / "acme_greet-1.0.dist-info").mkdir()
    (tmp_path / "acme_greet-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme-greet\nVersion: 1.0\n"
    )
    (tmp_path / "acme_greet-1.0.dist-info" / "entry_points.txt").write_text("[amb]\ngreet = acme_greet\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_a_plugins_command_runs_and_is_listed(installed: dict[str, str]) -> None:
    assert amb("greet", "world", env=installed) == Ended(0, "hello world\n", "")
    assert "greet      Say hello." in amb("--help", env=installed).out
    assert "did you mean 'greet'" in amb("geet", env=installed).complaint


def test_a_plugin_does_not_replace_a_command_of_ambs_own(installed: dict[str, str]) -> None:
    assert "Publish PAYLOAD on TOPIC" in amb("publish", "--help", env=installed).out


def test_a_broken_command_names_its_plugin(installed: dict[str, str]) -> None:
    done = amb("grumble", env=installed)
    assert done.code == ExitCode.NOT_FOUND
    assert "'grumble' of the plugin acme-greet:greet is broken: ZeroDivisionError" in done.complaint
