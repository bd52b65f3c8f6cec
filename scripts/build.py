"""Builds every distribution as sdist and wheel, and installs each one alone: ``python scripts/build.py``.

The files go to ``build/dist``. Each wheel is built from its sdist, so what is published can be built again. Each file
is then installed into an environment of its own that knows PyPI and ``build/dist``, and imported there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "build" / "dist"

# In a fresh interpreter: the package and its plugin modules, and where they come from.
_IMPORT = """
import importlib, importlib.metadata as metadata, sys
dist, package, version = sys.argv[1:]
module = importlib.import_module(package)
assert "site-packages" in module.__file__, module.__file__
assert metadata.version(dist) == version, metadata.version(dist)
assert getattr(module, "__version__", version) == version, module.__version__
for point in metadata.distribution(dist).entry_points:
    point.load()
print("amb-core", metadata.version("amb-core"))
"""


class BuildFailed(Exception):
    """A program failed, or a file lacks something. The text says which, and what the program printed."""


def folders() -> list[Path]:
    """The folder of every distribution: the members of the workspace, the core first."""
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]
    return [folder for member in workspace["members"] for folder in sorted(ROOT.glob(member))]


def metadata(folder: Path) -> dict[str, str]:
    """The name and version that a folder's ``pyproject.toml`` states, and the package it brings."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return {"name": project["name"], "version": project["version"], "package": project["name"].replace("-", "_")}


def packages(folder: Path) -> set[str]:
    """Every package that a distribution brings."""
    wheel = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    return {Path(package).name for package in wheel["packages"]}


def build(folder: Path, into: Path) -> list[Path]:
    """The sdist of a distribution, and the wheel built from it. Raises: BuildFailed with what the build said."""
    before = set(into.glob("*"))
    # -P: the folder `build` of this workspace must not shadow the tool.
    run([sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(into), str(folder)])
    return sorted(set(into.glob("*")) - before - {into / ".gitignore"}, key=lambda path: path.suffix)


def contents(archive: Path) -> set[str]:
    """The names of the files in a wheel, or in an sdist without its first folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return set(wheel.namelist())
    with tarfile.open(archive) as sdist:
        return {name.partition("/")[2] for name in sdist.getnames()}


def incomplete(archive: Path, package: str) -> list[str]:
    """What `archive` lacks of the licence, the marker for type checkers and, in an sdist, the text for PyPI."""
    names = contents(archive)
    if archive.suffix == ".whl":
        (info,) = {name.split("/")[0] for name in names if name.split("/")[0].endswith(".dist-info")}
        wanted = [f"{info}/licenses/LICENSE", f"{package}/py.typed", f"{package}/__init__.py"]
    else:
        wanted = ["LICENSE", "README.md", "pyproject.toml", f"src/{package}/py.typed", f"src/{package}/__init__.py"]
    return [name for name in wanted if name not in names]


def uv() -> str:
    """The program ``uv``. Raises: BuildFailed with how to get it."""
    local = ROOT / ".tools" / "bin" / "uv"
    found = os.environ.get("UV") or shutil.which("uv") or (str(local) if local.exists() else None)
    if found is None:
        raise BuildFailed("uv is missing: make uv")
    return found


class Environment:
    """An environment of its own that installs from PyPI and the folder `links`.

    Its methods raise BuildFailed with what the program said, if it failed.
    """

    def __init__(self, at: Path, links: Path = DIST) -> None:
        self.bin, self._links = at / "bin", links
        run([uv(), "venv", "--quiet", "--no-project", "--python", sys.executable, str(at)])

    def install(self, *requirements: str) -> Environment:
        """Install, PyPI and the folder being equals, as for a user who has no other index."""
        # Files of one version change from build to build: a cached one may be an older build.
        fresh = [f"--refresh-package={metadata(folder)['name']}" for folder in folders()]
        where = ["--no-config", "--python", str(self.bin / "python"), "--find-links", str(self._links)]
        run([uv(), "pip", "install", "--quiet", *where, *fresh, *requirements])
        return self

    def python(self, code: str, *arguments: str) -> str:
        """What `code` prints; warnings are errors, and nothing but the environment is on its path."""
        return run([str(self.bin / "python"), "-I", "-W", "error", "-c", code, *arguments])

    def installed(self) -> dict[str, str]:
        """The version of every installed distribution."""
        listed = json.loads(
            run([uv(), "pip", "list", "--quiet", "--format=json", "--python", str(self.bin / "python")])
        )
        return {item["name"]: item["version"] for item in listed}


def check(archive: Path, folder: Path) -> str:
    """Install `archive` alone and import it; returns what it found. Raises: BuildFailed with what is wrong."""
    facts = metadata(folder)
    lacking = incomplete(archive, facts["package"])
    if lacking:
        raise BuildFailed(f"{archive.name} lacks {', '.join(lacking)}")
    with tempfile.TemporaryDirectory(prefix="amb-build-") as scratch:
        alone = Environment(Path(scratch) / "env", archive.parent).install(str(archive))
        return alone.python(_IMPORT, facts["name"], facts["package"], facts["version"])


def run(command: Sequence[str]) -> str:
    """What the command prints, run outside any environment. Raises: BuildFailed with it, if it failed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, env=clean, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailed(f"{' '.join(command[:6])} … failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def main() -> None:
    """Build everything anew, then check every file; one line each."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir(parents=True)
    built = [(archive, folder) for folder in folders() for archive in build(folder, DIST)]
    for archive, folder in built:
        core = check(archive, folder)
        print(f"{archive.relative_to(ROOT)}: installed alone and imported, with {core}", flush=True)  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except BuildFailed as error:
        sys.exit(str(error))
