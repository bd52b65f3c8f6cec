"""Apache Kafka in KRaft mode, from its Maven artifacts: plain, with SASL, with TLS, all in one process.

The jars are fetched once, by Maven (with the settings in ``AMB_TEST_MAVEN_SETTINGS``, if given), into
``~/.cache/amb-tests`` (or ``AMB_TEST_CACHE``). Where that fails, an imitation without SASL, TLS and access rules stands
in, and says so in one line.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest

from .maven import cache, maven
from .process import MissingServer, Server, free_ports, program, running

VERSION = "4.1.1"
ROOT = Path(__file__).parents[2]
#: May do everything, and what a test allows.
USER, PASSWORD = "amb", "correct-horse"
LIMITED, LIMITED_PASSWORD = "limited", "battery-staple"

#: What Maven is asked for: the broker with all that it needs, and something that takes its log lines.
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>amb.tests</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
"""
_CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"
_JAVA = (
    "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)  # fmt: skip


class KafkaServer(msgspec.Struct, frozen=True):
    """A broker, and where its listeners are."""

    host: str
    #: No TLS, no credentials.
    port: int
    #: SASL (PLAIN and SCRAM-SHA-256) without TLS, TLS alone, and both. For the host ``localhost``. 0: an imitation.
    sasl_port: int
    tls_port: int
    sasl_tls_port: int
    #: The file of the authority that signed the server's certificate.
    ca: str
    process: Server
    #: May do everything.
    user: str = USER
    password: str = PASSWORD
    #: May do nothing but what a test allows.
    limited_user: str = LIMITED
    limited_password: str = LIMITED_PASSWORD

    def need_security(self) -> None:
        """Skip the test, with a line that says so, where the server has neither users nor TLS."""
        if not self.sasl_port:
            pytest.skip("not run: this imitation of Kafka has neither SASL nor TLS nor access rules")

    @property
    def address(self) -> str:
        """For ``bootstrap_servers``."""
        return f"{self.host}:{self.port}"


@contextmanager
def alone(**properties: str) -> Iterator[KafkaServer]:
    """One broker, its own controller; `properties` are added to its configuration."""
    with ExitStack() as stack:
        try:
            jars = _jars()
        except MissingServer as missing:
            print(f"noida-db stands in for Kafka, without SASL and TLS: {missing}", file=sys.stderr)
            yield stack.enter_context(_imitation())
            return
        yield stack.enter_context(_started(jars, f"-XX:SharedArchiveFile={_archive(jars)}", **properties))


@contextmanager
def _imitation() -> Iterator[KafkaServer]:
    made = subprocess.run(["bash", str(ROOT / "scripts" / "get-noida-db")], capture_output=True, text=True)
    if made.returncode:
        raise MissingServer(f"noida-db could not be installed: {made.stderr.strip()[-300:]}")
    with tempfile.TemporaryDirectory(prefix="amb-kafka-") as name:
        folder, port = Path(name), free_ports(1)[0]
        command = [str(ROOT / ".tools" / "noida-db" / "bin" / "noida-db"), "start", "--only", "kafka"]
        command += ["--kafka-port", str(port), "--host", "127.0.0.1", "--data-dir", str(folder)]
        server = Server(command, folder, lambda: answers(port))
        with running(server):
            yield KafkaServer("127.0.0.1", port, 0, 0, 0, "", server)


@contextmanager
def _started(jars: Path, archive: str, **properties: str) -> Iterator[KafkaServer]:
    with tempfile.TemporaryDirectory(prefix="amb-kafka-") as name:
        folder, ports = Path(name), free_ports(5)
        (folder / "server.properties").write_text(_properties(folder, ports, properties))
        java = [program("java", "openjdk-17-jre-headless"), *_JAVA, "-cp", f"{jars}/*"]
        scram = f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]"
        subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "--standalone", "-t", _CLUSTER_ID,
             "-c", "server.properties", "--add-scram", scram],
            cwd=folder, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        server = Server([*java, archive, "kafka.Kafka", "server.properties"], folder, lambda: answers(ports[0]))
        with running(server):
            yield KafkaServer("127.0.0.1", ports[0], ports[1], ports[2], ports[3], str(folder / "ca.pem"), server)


def _archive(jars: Path) -> Path:
    """The classes of a running broker as Java keeps them in memory: it then starts in half the time."""
    archive = jars / "classes.jsa"
    if not archive.exists():
        fresh = jars / f"classes.{os.getpid()}"
        with _started(jars, f"-XX:ArchiveClassesAtExit={fresh}"):
            pass
        if fresh.exists():
            fresh.rename(archive)
    return archive


async def allow(server: KafkaServer, prefix: str) -> None:
    """Let the limited user do everything with the topics that begin so, with AMB's own, and with groups."""
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()
    try:
        topic, group, literal, prefixed, everything, allowed = 2, 3, 3, 4, 2, 3
        for kind, name, match in ((topic, prefix, prefixed), (topic, "_amb.", prefixed), (group, "*", literal)):
            rule = (kind, name, match, f"User:{LIMITED}", "*", everything, allowed)
            made = await admin._client.send(admin._client.get_random_node(), CreateAclsRequest(*rule))
            assert not made.creation_responses[0][0], made
            # The controller has it; the server that asks for it hears of it a little later.
            while not (await admin._client.send(admin._client.get_random_node(), DescribeAclsRequest(*rule))).resources:
                await anyio.sleep(0.02)
    finally:
        await admin.close()


def _properties(folder: Path, ports: list[int], more: dict[str, str]) -> str:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    pair = authority.issue_cert("localhost", "127.0.0.1")
    key = subprocess.run(
        [program("openssl", "openssl"), "pkcs8", "-topk8", "-nocrypt"],
        input=pair.private_key_pem.bytes(), check=True, capture_output=True,
    ).stdout  # fmt: skip
    (folder / "server.pem").write_bytes(key + b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    names = ("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL", "CONTROLLER")
    hosts = ("127.0.0.1", "127.0.0.1", "localhost", "localhost", "127.0.0.1")
    listeners = [f"{name}://{host}:{port}" for name, host, port in zip(names, hosts, ports, strict=True)]
    plain = " ".join(f'user_{u}="{secret}"' for u, secret in ((USER, PASSWORD), (LIMITED, LIMITED_PASSWORD)))
    module = "org.apache.kafka.common.security"
    lines = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{ports[4]}",
        "listeners": ",".join(listeners),
        "advertised.listeners": ",".join(listeners[:4]),
        "listener.security.protocol.map": ",".join(f"{n}:{n}" for n in names[:4]) + ",CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "server.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:ANONYMOUS;User:{USER}",
        "log.dirs": str(folder / "data"),
        "log.index.size.max.bytes": "65536",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        # Else every commit waits 5 ms for others that could be written with it.
        "group.coordinator.append.linger.ms": "0",
        "group.min.session.timeout.ms": "1000",
        "auto.create.topics.enable": "false",
        "controlled.shutdown.enable": "false",
        # After a restart the controller takes the broker for its own double until its former session has ended.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "300",
    }
    for listener in ("sasl_plaintext", "sasl_ssl"):
        here = f"listener.name.{listener}"
        lines[f"{here}.plain.sasl.jaas.config"] = f"{module}.plain.PlainLoginModule required {plain};"
        lines[f"{here}.scram-sha-256.sasl.jaas.config"] = f"{module}.scram.ScramLoginModule required;"
    return "".join(f"{name}={value}\n" for name, value in (lines | more).items())


def answers(port: int) -> bool:
    """Whether a broker lists itself: it then serves clients, not only its port."""
    # Metadata, version 0, no topics meant as all: the shortest question whose answer names the live brokers.
    body = struct.pack(">hhih3si", 3, 1, 7, 3, b"amb", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.settimeout(2)
            sock.sendall(struct.pack(">i", len(body)) + body)
            head = sock.recv(12, socket.MSG_WAITALL)
            return len(head) == 12 and struct.unpack(">i", head[8:])[0] > 0
    except OSError:
        return False


def _jars() -> Path:
    """The folder of the jars. Raises: MissingServer, where neither Maven nor an earlier run has them."""
    jars = cache() / f"kafka-{VERSION}"
    if (jars / "complete").exists():
        return jars
    jars.mkdir(parents=True, exist_ok=True)
    (jars / "pom.xml").write_text(_POM)
    maven("Kafka's jars", jars, "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={jars}")
    (jars / "complete").touch()
    return jars
