"""A small repository with everything that agents stumble over, and a Redis that the agents' processes find."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path

import pytest

from tests.servers.redis import RedisServer

#: What is in `repository`: files, commits, and what cannot be worked on.
FILES, COMMITS = 64, 4
DEAD = {"file broken.py", "file picture.png", "commit 'First of all'"}


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 sound files, one too big for a quick look, one that is no Python, one that is no text; a merge; commits
    for one reviewer and for the panel."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q", "-b", "main")
    for number in range(60):
        (folder / f"module_{number}.py").write_text(f"def f{number}():\n    return {number}\n" * 8)
    commit(folder, "First of all")
    (folder / "long.py").write_text("x = 1  # and so on\n" * 2000)
    (folder / "broken.py").write_text("def f(:\n")
    commit(folder, "A long file and a broken one")
    git(folder, "checkout", "-q", "-b", "side", "HEAD^")
    (folder / "picture.png").write_bytes(bytes(range(256)))
    (folder / "settings.json").write_text(json.dumps(list(range(90)), indent=1))
    commit(folder, "Pictures")
    git(folder, "checkout", "-q", "main")
    git(folder, "merge", "-q", "--no-ff", "-m", "Both together", "side")
    return folder


def commit(folder: Path, subject: str) -> None:
    """Commit everything there is."""
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", subject)


def git(folder: Path, *arguments: str) -> None:
    """git, as nobody in particular."""
    who = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def redis(redis_server: RedisServer) -> dict[str, str]:
    """The variables that lead the demo to a Redis where nobody else is."""
    return {
        "AMB_BROKER": "redis",
        "AMB_REDIS_URL": redis_server.url,
        "AMB_REDIS_PREFIX": f"demo-{secrets.token_hex(4)}",
    }
