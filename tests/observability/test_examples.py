"""The demo prints its tree; the dashboard asks for what there is, and for all of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from amb_core import CircuitBreaker, MessageBus
from amb_core.observability import metrics
from amb_core.observability._durations import HISTOGRAMS
from amb_core.observability._readings import METRICS

from tests.core._help import Collector, eventually

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
TREE = """
thinking
    publish agent.thoughts
        process agent.thoughts
            publish tools.search
                process tools.search
                    publish (temporary)
            publish tools.deploy
                process tools.deploy ! PermissionError
                    publish (temporary)
            publish agent.failures
                process agent.failures
"""


def test_the_demo_prints_the_whole_trace_as_a_tree() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "tracing_demo.py"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, _, tree = done.stdout.partition("\n")
    assert re.fullmatch(
        r"the responder on 'tools\.deploy' failed: PermissionError: no key for production \(trace [0-9a-f]{32}\)", first
    )
    assert tree == TREE and done.stderr == ""


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((EXAMPLES / "grafana.json").read_text())["panels"]
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.mark.anyio
async def test_the_dashboard_asks_only_for_what_is_emitted_by_labels_that_it_has() -> None:
    registry = metrics.registry()
    async with MessageBus(circuit_breaker=CircuitBreaker()) as bus:
        await bus.subscribe("t", Collector())
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked == 1, "the message")
        emitted = defaultdict[str, set[str]](set)
        for sample in (sample for family in registry.collect() for sample in family.samples):
            emitted[sample.name] |= sample.labels.keys()
    for query in queries():
        names = re.findall(r"\bamb_\w+", query)
        labels = {
            *re.findall(r"(\w+)=~?\"", query),
            *(label for listed in re.findall(r"by \(([^)]*)\)", query) for label in listed.split(", ")),
        }
        assert names, query
        for name in names:
            assert name in emitted, f"{name}, in {query}, is not among {sorted(emitted)}"
            assert labels <= emitted[name], query


def test_the_dashboard_shows_every_metric() -> None:
    asked = " ".join(queries())
    assert [
        name for name in (*METRICS, *HISTOGRAMS) if not re.search(rf"\b{name}(_total|_bucket|_count)?\b", asked)
    ] == []


def test_the_panels_of_the_dashboard_have_places_of_their_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in panels()})
