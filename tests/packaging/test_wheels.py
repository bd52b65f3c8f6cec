"""What is published: complete files, one version, and never the foreign amb-core 0.x from PyPI."""

from __future__ import annotations

from collections.abc import Callable
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts import build
from scripts.build import BuildFailed, Environment

FOLDERS = build.folders()
CORE = "amb-core"
#: The last release of the other project that holds the name below 1.0, and an older one.
FOREIGN = ("0.1.0",)
pytestmark = pytest.mark.timeout(300)


def headers(wheel: Path) -> dict[str, list[str]]:
    """The metadata of a wheel: every value of every field."""
    with ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        parsed = Parser().parsestr(file.read(name).decode())
    return {field: parsed.get_all(field, []) for field in {*parsed.keys()}}


def wheel_of(folder: Path, dists: Path) -> Path:
    """The wheel of a distribution."""
    (wheel,) = dists.glob(f"{build.metadata(folder)['package']}-*.whl")
    return wheel


def needs(folder: Path, dists: Path) -> list[Requirement]:
    """What a wheel asks for, extras included."""
    return [Requirement(text) for text in headers(wheel_of(folder, dists)).get("Requires-Dist", [])]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_file_holds_the_licence_and_the_type_marker(folder: Path, dists: Path) -> None:
    facts = build.metadata(folder)
    files = sorted(dists.glob(f"{facts['package']}-{facts['version']}*"))
    assert [file.suffix for file in files] == [".whl", ".gz"]
    assert {file.name: build.incomplete(file, facts["package"]) for file in files} == {file.name: [] for file in files}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_wheel_holds_its_packages_and_nothing_else(folder: Path, dists: Path) -> None:
    tops = {name.split("/")[0] for name in build.contents(wheel_of(folder, dists))}
    assert {top for top in tops if not top.endswith(".dist-info")} == build.packages(folder)
    in_source = {path.relative_to(folder / "src").as_posix() for path in (folder / "src").rglob("*.py")}
    assert in_source == {name for name in build.contents(wheel_of(folder, dists)) if name.endswith(".py")}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_distribution_is_1_0_for_3_11_under_mit(folder: Path, dists: Path) -> None:
    stated = headers(wheel_of(folder, dists))
    assert stated["Version"] == ["1.0.0"]
    assert stated["Requires-Python"] == [">=3.11"]
    assert stated["License-Expression"] == ["MIT"]


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name != CORE], ids=lambda folder: folder.name)
def test_every_backend_asks_for_the_core_from_1_0_to_2(folder: Path, dists: Path) -> None:
    (core,) = [need for need in needs(folder, dists) if need.name == CORE and need.marker is None]
    assert {version: core.specifier.contains(version) for version in ("0.1.0", "0.99", "1.0.0", "1.9", "2.0.0")} == {
        "0.1.0": False,
        "0.99": False,
        "1.0.0": True,
        "1.9": True,
        "2.0.0": False,
    }


def test_the_core_asks_for_our_backends_from_1_0_to_2(dists: Path) -> None:
    ours = [need for need in needs(FOLDERS[0], dists) if need.name.startswith("amb-") and need.name != CORE]
    assert ours
    assert all(not n.specifier.contains("0.9") and not n.specifier.contains("2.0") for n in ours)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_by_name_from_pypi_and_our_files_comes_our_core(folder: Path, environment: Callable[..., Environment]) -> None:
    made = environment(folder.name)
    assert made.installed()[CORE] == "1.0.0"
    assert made.python("import amb_core; print(amb_core.MessageBus.__module__)") == "amb_core._bus"


def test_a_backend_without_our_core_fails_rather_than_take_the_foreign_one(
    dists: Path, tmp_path: Path, redis_wheel: Path
) -> None:
    (tmp_path / redis_wheel.name).write_bytes(redis_wheel.read_bytes())
    with pytest.raises(BuildFailed, match=r"amb-core>=1\.0") as failed:
        Environment(tmp_path / "env", tmp_path).install(str(redis_wheel))
    assert "amb-redis" in str(failed.value)


@pytest.fixture(scope="session")
def redis_wheel(dists: Path) -> Path:
    """The wheel of a first-party backend."""
    (wheel,) = dists.glob("amb_redis-*.whl")
    return wheel


@pytest.mark.parametrize("foreign", FOREIGN)
def test_where_the_foreign_core_is_installed_ours_takes_its_place(
    foreign: str, environment: Callable[..., Environment]
) -> None:
    made = environment(f"{CORE}=={foreign}")
    assert Version(made.installed()[CORE]) < Version("1.0")
    made.install("amb-redis")
    assert made.installed()[CORE] == "1.0.0"
    # Nothing of the other one is left between our modules.
    assert made.python("import amb_core, amb_redis.broker; print(amb_core.__version__)") == "1.0.0"


def test_the_core_alone_brings_no_client_library(core_only: Environment) -> None:
    assert {"redis", "pytest", "trio"}.isdisjoint(core_only.installed())


@pytest.mark.parametrize(
    ("extra", "brings"),
    [
        ("redis", {"amb-redis", "redis"}),
        ("kafka", {"amb-kafka", "aiokafka"}),
        ("nats", {"amb-nats", "nats-py"}),
        ("rabbitmq", {"amb-rabbitmq", "aio-pika"}),
        ("sqs", {"amb-sqs", "aiobotocore"}),
        ("aws", {"amb-sqs", "aiobotocore"}),
        ("azure", {"amb-azure", "azure-servicebus"}),
        ("dev", {"pytest", "pytest-cov", "build"}),
        ("all-brokers", {"amb-azure", "amb-kafka", "amb-nats", "amb-rabbitmq", "amb-redis", "amb-sqs"}),
        ("msgpack", set[str]()),
        ("protobuf", {"protobuf", "grpcio-tools"}),
        ("avro", {"fastavro"}),
        ("metrics", {"prometheus-client", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"}),
        ("testing", {"pytest", "hypothesis", "trio", "uvloop"}),
        ("tracing", {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"}),
        ("all", {"amb-azure", "amb-redis", "pytest", "hypothesis", "trio", "uvloop"}),
    ],
)
def test_an_extra_brings_what_it_says(
    extra: str, brings: set[str], core_only: Environment, environment: Callable[..., Environment]
) -> None:
    more = set(environment(f"{CORE}[{extra}]").installed()) - set(core_only.installed())
    assert brings <= more
    assert brings or not more


def test_kafka_has_an_extra_for_schema_registries(environment: Callable[..., Environment]) -> None:
    assert {"httpx", "fastavro"} <= set(environment("amb-kafka[schema-registry]").installed())


def test_the_kernel_has_the_extras_of_the_core(environment: Callable[..., Environment]) -> None:
    assert {"amb-kernel", "amb-redis", "protobuf"} <= set(environment("amb-kernel[amb,redis,protobuf]").installed())


def test_every_extra_is_tested(dists: Path) -> None:
    stated = set(headers(wheel_of(FOLDERS[0], dists))["Provides-Extra"])
    brokers = {"redis", "kafka", "nats", "rabbitmq", "sqs", "aws", "azure", "all-brokers"}
    assert stated == {*brokers, "avro", "dev", "metrics", "msgpack", "protobuf", "testing", "tracing", "all"}
