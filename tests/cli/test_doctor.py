"""backends, doctor and conform: what there is, whether it works, and what to do if not."""

from __future__ import annotations

import json

import msgspec
from amb_core import Capabilities
from amb_core.cli._exit import ExitCode

from tests.servers.redis import SecureRedis

from ._amb import amb


def checks(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, dict[str, object]]]:
    """The exit code of ``amb doctor``, and what did not go well by the name of the check."""
    done = amb("doctor", "--json", *arguments, env=env)
    report = json.loads(done.out)
    assert report["ok"] == (done.code == 0)
    assert done.err == ""
    return done.code, {check["name"]: check for check in report["checks"] if check["result"] != "ok"}


def test_a_doctor_is_content_with_memory_and_with_a_redis_that_works(redis: dict[str, str]) -> None:
    assert checks() == (0, {})
    assert checks(env=redis) == (0, {})
    said = amb("doctor", env=redis)
    assert "all is well" in said.out and "a reply came in" in said.out


def test_a_doctor_says_where_a_server_is_missing_and_how_to_name_it() -> None:
    code, bad = checks("--broker", "redis://127.0.0.1:1", "--connect-timeout", "0.2")
    assert code == ExitCode.UNREACHABLE
    assert "--url redis://HOST:PORT" in str(bad["reachability"]["fix"])


def test_a_doctor_finds_misspelt_names_and_variables() -> None:
    code, bad = checks(env={"AMB_BROKER": "redsi", "AMB_REDIS_URI": "redis://localhost", "AMB_SERIALIZER": "jsno"})
    assert code == ExitCode.NOT_FOUND
    assert "AMB_REDIS_URL" in str(bad["environment"]["fix"])
    assert "did you mean 'redis'" in str(bad["broker"]["text"])
    assert "did you mean 'json'" in str(bad["serializer"]["text"])


def test_a_doctor_tells_bad_credentials_from_missing_permissions(secure_redis: SecureRedis) -> None:
    where = {
        "AMB_BROKER": "redis",
        "AMB_REDIS_URL": f"rediss://{secure_redis.host}:{secure_redis.port}",
        "AMB_REDIS_SSL_CA_CERTS": secure_redis.ca,
    }
    limited = {"AMB_REDIS_USERNAME": secure_redis.limited_username, "AMB_REDIS_PASSWORD": secure_redis.limited_password}
    code, bad = checks(env=where | limited | {"AMB_REDIS_PASSWORD": "wrong"})
    assert (code, list(bad)) == (ExitCode.REFUSED, ["reachability"])
    assert "user and password" in str(bad["reachability"]["fix"])

    code, bad = checks(env=where | limited)
    assert code == ExitCode.REFUSED
    assert {"publish", "subscribe"} <= set(bad)
    assert "grant" in str(bad["publish"]["fix"])

    full = {"AMB_REDIS_USERNAME": secure_redis.username, "AMB_REDIS_PASSWORD": secure_redis.password}
    assert checks(env=where | full) == (0, {})


def test_backends_shows_every_capability_of_every_installed_broker() -> None:
    rows = {line.split()[0]: line.split()[1:] for line in amb("backends").out.splitlines()}
    assert sorted(rows["capability"]) == ["azure", "kafka", "memory", "nats", "rabbitmq", "redis", "sqs"]
    assert set(rows) == {"capability", *Capabilities.__struct_fields__}
    durable = dict(zip(rows["capability"], rows["durable"], strict=True))
    assert durable == {name: "-" if name in ("memory", "nats") else "yes" for name in durable}

    found = {backend["name"]: backend for backend in json.loads(amb("backends", "--json").out)}
    assert msgspec.convert(found["redis"]["capabilities"], Capabilities).durable
    assert amb("backends", "redis", "--markdown").out.startswith("| capability | redis |\n| --- | --- |\n")


def test_conform_runs_the_cases_and_prints_one_line_each() -> None:
    done = amb("conform", "memory://?lease=0.5", "--only", "A1", "--only", "A2")
    lines = done.out.splitlines()
    assert (done.code, [line.split()[:2] for line in lines[:2]]) == (0, [["A1", "passed"], ["A2", "passed"]])
    report = json.loads(amb("conform", "memory://?lease=0.5", "--only", "A1", "--json").out)
    assert (report["passed"], report["failed"], report["outcomes"][0]["id"]) == (1, 0, "A1")


def test_conform_shortens_leases_so_that_waiting_for_them_to_end_takes_no_minutes() -> None:
    report = json.loads(amb("conform", "memory", "--only", "D7", "--lease", "0.5", "--json").out)
    assert (report["passed"], report["seconds"] < 15) == (1, True)
