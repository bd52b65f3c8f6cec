"""What comes from Maven's repository: fetched once, and kept."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .process import MissingServer, program


def cache() -> Path:
    """The folder where it is kept: ``~/.cache/amb-tests``, or ``AMB_TEST_CACHE``."""
    return Path(os.environ.get("AMB_TEST_CACHE") or Path.home() / ".cache" / "amb-tests")


def maven(what: str, folder: Path, *goal: str) -> None:
    """Run Maven in a folder, with the settings in ``AMB_TEST_MAVEN_SETTINGS``, if given. Raises: MissingServer."""
    command = [program("mvn", "maven"), "-B", "-q", "-Dstyle.color=never", *goal]
    if settings := os.environ.get("AMB_TEST_MAVEN_SETTINGS"):
        command += ["-s", settings]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        raise MissingServer(f"{what} cannot be fetched: {said[:200]}")
