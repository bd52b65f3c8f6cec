"""Every block of every page runs, and every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ._page import ROOT, THEIR_AZURE, THEIR_KAFKA, THEIR_NATS, THEIR_RABBITMQ, THEIR_REDIS, THEIR_REGISTRY, THEIR_SQS, blocks, pages

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
_PAGES = {str(page.relative_to(ROOT)): page for page in pages()}


@pytest.mark.parametrize("name", _PAGES)
def test_a_page_does_what_it_says(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    page = _PAGES[name]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AMB_")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment["PYTHONPATH"] = str(ROOT)
    if re.search(rf"AMB_REDIS_URL|{THEIR_REDIS}", page.read_text()):
        environment["AMB_REDIS_URL"] = request.getfixturevalue("redis_server").url
    if THEIR_NATS in page.read_text():
        environment["AMB_NATS_URL"] = request.getfixturevalue("nats_server").url
    if THEIR_RABBITMQ in page.read_text():
        environment["AMB_RABBITMQ_URL"] = request.getfixturevalue("rabbitmq_server").url
    if THEIR_SQS in page.read_text():
        environment["AMB_SQS_ENDPOINT_URL"] = request.getfixturevalue("sqs_server").url
    if THEIR_AZURE in page.read_text():
        server = request.getfixturevalue("servicebus")
        environment["AMB_TEST_AZURE_ENDPOINT"] = f"sb://{server.host}:{server.port}"
    if THEIR_KAFKA in page.read_text():
        environment["AMB_KAFKA_BROKERS"] = request.getfixturevalue("kafka_server").address
    if f'schema_registry_url="{THEIR_REGISTRY}"' in page.read_text():
        environment["AMB_SCHEMA_REGISTRY_URL"] = request.getfixturevalue("schema_registry").url
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.docs._session", str(page)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{name}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", _PAGES)
def test_a_block_is_run_or_says_what_else_it_is(name: str) -> None:
    for block in blocks(_PAGES[name]):
        assert block.title or block.language in ("python", "console", "sh", "text"), f"{name}:{block.line}"


@pytest.mark.parametrize("name", _PAGES)
def test_links_lead_to_a_file_and_a_heading(name: str) -> None:
    page = _PAGES[name]
    for target in _LINK.findall(_FENCED.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in _anchors(file), f"{name} links to {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = _LINK.findall(_FENCED.sub("", page.read_text()))
        todo += [
            (page.parent / link.partition("#")[0]).resolve() for link in links if "://" not in link and link[0] != "#"
        ]
    assert sorted(set(_PAGES.values()) - seen) == []


def _anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
