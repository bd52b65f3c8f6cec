"""The benchmarks run to their end and say what they measured. How fast it was is nobody's test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from benchmarks import azure, kafka, memory, nats, rabbitmq, redis, serializers, sqs
from benchmarks._network import budgets
from benchmarks._rounds import Budget, Report
from tests.servers.redis import RedisServer

ROOT = Path(__file__).resolve().parents[2]


def _run(script: str, file: Path) -> tuple[str, Report]:
    shown = ["--quick", "--rounds", "1", "--without-peers", "--json", str(file)]
    command = [sys.executable, "-m", f"benchmarks.{script}", *shown]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, msgspec.json.decode(file.read_bytes(), type=Report)


def _expected(budgets: list[Budget], *against: str) -> list[str]:
    return [budget.what for budget in budgets if budget.against in against]


def test_the_memory_benchmark_shows_a_ratio_for_every_budget_against_the_floor(tmp_path: Path) -> None:
    table, report = _run("memory", tmp_path / "memory.json")
    assert [line.what for line in report.lines] == _expected(memory.BUDGETS, "floor", "")
    assert all(line.ratio > 0 for line in report.lines if line.unit != "%")
    assert all(line.what in table for line in report.lines)


def test_the_benchmark_of_serializers_shows_a_ratio_for_every_budget(tmp_path: Path) -> None:
    table, report = _run("serializers", tmp_path / "serializers.json")
    assert [line.what for line in report.lines] == [budget.what for budget in serializers.BUDGETS]
    assert all(line.ratio > 0 and line.what in table for line in report.lines)


def test_the_redis_benchmark_shows_a_ratio_for_every_budget_against_the_raw_client(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    table, report = _run("redis", tmp_path / "redis.json")
    assert [line.what for line in report.lines] == _expected(redis.BUDGETS, "redis-py")
    assert all(line.ours > 0 and line.what in table for line in report.lines)


@pytest.mark.parametrize("broker", [nats, kafka, rabbitmq, sqs, azure], ids=lambda module: module.__name__)
def test_a_brokers_benchmark_shows_a_ratio_for_every_case_against_the_raw_client(
    broker: ModuleType, tmp_path: Path
) -> None:
    table, report = _run(broker.__name__.removeprefix("benchmarks."), tmp_path / "report.json")
    assert [line.what for line in report.lines] == _expected(budgets(broker.RAW), broker.RAW)
    assert all(line.ours > 0 and line.what in table for line in report.lines)


@pytest.mark.parametrize("case", ["one at a time", "pump"])
def test_the_profile_names_functions_of_the_core(case: str) -> None:
    command = [sys.executable, "-m", "benchmarks.hotspots", case, "--seconds", "0.3", "--count", "2000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    # It looks some hundred times: which of the core's functions are among the first is chance.
    assert "(amb_core/_" in done.stdout
