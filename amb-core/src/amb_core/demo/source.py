"""The input: the newest commits and the files of a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import msgspec

from .messages import Commit, File

#: Folders that are nobody's source.
SKIPPED = {"node_modules", "__pycache__", "build", "dist", "venv"}


class NoInput(Exception):
    """There is nothing to work on; the text says why and what to do."""


class Source(msgspec.Struct, frozen=True):
    """What there is to look at."""

    folder: str
    commits: list[Commit]
    files: list[File]
    #: Why there are no commits, if there are none.
    no_history: str = ""


def read_source(folder: str, limit: int) -> Source:
    """The newest `limit` commits and the first `limit` files of `folder`. Blocks. Raises: NoInput."""
    root = Path(folder).resolve()
    if not root.is_dir():
        raise NoInput(f"--input {folder!r} is no folder")
    no_history = _why_no_history(root)
    commits = [] if no_history else _commits(root, limit)
    files = _walked(root, limit) if no_history else _tracked(root, limit)
    if not commits and not files:
        raise NoInput(f"{str(root)!r} has neither commits nor files: give a folder with some source by --input DIR")
    return Source(str(root), commits, files, no_history)


def _why_no_history(root: Path) -> str:
    if shutil.which("git") is None:
        if any((folder / ".git").exists() for folder in (root, *root.parents)):
            raise NoInput(
                "git is not installed, so the history cannot be read: install it (apt install git), "
                "or give a folder without history by --input DIR"
            )
        return "git is not installed"
    checked = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--verify", "-q", "HEAD^{commit}"],
        capture_output=True,
        text=True,
        errors="replace",
    )
    if checked.returncode == 0:
        return ""
    return (checked.stderr.strip().splitlines() or ["the repository has no commits"])[0]


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout.decode(
        errors="replace"
    )


def _commits(root: Path, limit: int) -> list[Commit]:
    within = ("--", ".") if _git(root, "rev-parse", "--show-prefix").strip() else ()
    log = _git(root, "log", f"--max-count={limit}", "-z", "--format=%H%x1f%P%x1f%s", *within)
    rows = (entry.split("\x1f", 2) for entry in log.split("\0") if entry)
    return [Commit(str(root), sha, subject, len(parents.split())) for sha, parents, subject in rows]


def _tracked(root: Path, limit: int) -> list[File]:
    names = (name for name in _git(root, "ls-files", "-z").split("\0") if name)
    found = (name for name in names if not (root / name).is_symlink() and (root / name).is_file())
    return [File(str(root), name) for name, _ in zip(found, range(limit), strict=False)]


def _walked(root: Path, limit: int) -> list[File]:
    files: list[File] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                files.append(File(str(root), os.fsencode(path.relative_to(root)).decode(errors="replace")))
            if len(files) == limit:
                return files
    return files
