"""The first command of the README, as a stranger runs it: a fresh clone, and nothing of ours in the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project as it was committed; where it came without its history, its files."""
    if (ROOT / ".git").exists():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "amb")], check=True)
    else:
        ours = shutil.ignore_patterns(".venv", ".tools", "build", ".*_cache", "__pycache__")
        shutil.copytree(ROOT, tmp_path / "amb", ignore=ours)
    return tmp_path / "amb"


@pytest.mark.timeout(120)
def test_make_demo_works_in_a_fresh_clone(clone: Path) -> None:
    mine = ("AMB_", "VIRTUAL_ENV", "PYTHON", "MAKE", "MFLAGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    done = subprocess.run(["make", "demo"], cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "agents together in one process, on InMemoryBroker" in done.stderr
    assert " 0 lost" in done.stdout.splitlines()[-1]
    assert (clone / ".venv" / "bin" / "amb").exists()
    # What making it leaves behind is ignored by git.
    if (clone / ".git").exists():
        status = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True)
        assert status.stdout == ""
