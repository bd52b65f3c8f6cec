"""The guide "Using Message Bus Adapters" (requirement text 004): its containers.

Docker is not run. The guide's ``docker run -d -p 6379:6379 redis:latest`` and this file are the reader's business; the
servers of the tests are started by `tests.servers`, and containers to try things with are in ``compose.yaml``.
"""

from __future__ import annotations

import re

import pytest

from ._run import run

COMPOSE = """
# docker-compose.yml
version: '3.8'

services:
  redis:
    image: redis:7
    ports:
      - "6379:6379"

  kafka:
    image: confluentinc/cp-kafka:latest
    ports:
      - "9092:9092"
    environment:
      KAFKA_ADVERTISED_LISTENERS: PLAINTEXT://localhost:9092
      KAFKA_ZOOKEEPER_CONNECT: zookeeper:2181

  zookeeper:
    image: confluentinc/cp-zookeeper:latest
    environment:
      ZOOKEEPER_CLIENT_PORT: 2181

  nats:
    image: nats:latest
    ports:
      - "4222:4222"
    command: ["--js"]  # Enable JetStream

  agent:
    build: .
    depends_on:
      - redis
      - kafka
      - nats
    environment:
      REDIS_URL: redis://redis:6379
      KAFKA_SERVERS: kafka:9092
      NATS_URL: nats://nats:4222
"""

BROKERS = """
import os
from amb_core.adapters import KafkaBroker, NATSBroker, RedisBroker

brokers = {
    "redis": RedisBroker(url=os.environ["REDIS_URL"]),
    "kafka": KafkaBroker(bootstrap_servers=os.environ["KAFKA_SERVERS"]),
    "nats": NATSBroker(servers=[os.environ["NATS_URL"]], use_jetstream=True),
}
"""


@pytest.mark.asyncio
async def test_the_containers_variables_configure_the_agents_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent in its container has these variables, and reads them as the guide says."""
    variables = dict(re.findall(r"^ {6}(REDIS_URL|KAFKA_SERVERS|NATS_URL): (.+)$", COMPOSE, re.MULTILINE))
    ports = dict(re.findall(r'^  (\w+):\n(?:    .*\n)*?      - "(\d+):\2"', COMPOSE, re.MULTILINE))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    brokers = (await run(BROKERS, {}))["brokers"]
    (kafka,), (nats,) = brokers["kafka"].addresses, brokers["nats"].addresses
    hosts = [address.rpartition("/")[2].partition(":") for address in (brokers["redis"].url, kafka, nats)]
    assert {host: port for host, _, port in hosts} == ports
