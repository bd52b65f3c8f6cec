"""Elections on Kafka beside what the conformance kit asks of everybody."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from amb_core import MessageBus, UnsupportedError
from amb_core.errors import ConfigurationError, NotFound
from amb_kafka import KafkaBroker
from amb_kafka._elections import LONGEST, Wish, Wishes

from tests.servers.kafka import KafkaServer

pytestmark = pytest.mark.anyio
Make = Callable[..., KafkaBroker]
TOPIC = "_amb.elections"
HOUR = 3_600_000


async def test_what_a_stranger_writes_there_decides_nothing(
    broker: KafkaBroker, name: str, kafka_server: KafkaServer
) -> None:
    async with MessageBus(broker) as bus:
        elections = await bus.elections()
        token = await elections.acquire(name, 30)
        assert token is not None
        async with AIOKafkaProducer(bootstrap_servers=kafka_server.address) as producer:
            for value in (b"", b"\xff", b"{}", b'{"do": "seize", "name": "%s"}' % name.encode()):
                await producer.send_and_wait(TOPIC, value)
        assert await elections.acquire(name, 30) is None
        assert await elections.renew(name, token, 30)
        await elections.release(name, token)


async def test_a_term_longer_than_the_topic_remembers_is_refused(broker: KafkaBroker, name: str) -> None:
    async with MessageBus(broker) as bus:
        with pytest.raises(UnsupportedError, match=rf"'{name}'.*at most {LONGEST} s"):
            await (await bus.elections()).acquire(name, LONGEST + 1)


async def test_the_topic_must_have_the_clusters_times(own_kafka_server: KafkaServer, make: Make, name: str) -> None:
    broker = make(bootstrap_servers=own_kafka_server.address)
    admin = AIOKafkaAdminClient(bootstrap_servers=own_kafka_server.address)
    await admin.start()
    try:
        await admin.delete_topics([TOPIC])
        async with MessageBus(make(bootstrap_servers=own_kafka_server.address, create_topics=False)) as bus:
            with pytest.raises(NotFound, match=TOPIC):
                await (await bus.elections()).acquire(name, 30)
        await admin.create_topics([NewTopic(TOPIC, 1, 1)])
        async with MessageBus(broker) as bus:
            with pytest.raises(ConfigurationError, match=r"message\.timestamp\.type=LogAppendTime"):
                await (await bus.elections()).acquire(name, 30)
    finally:
        await admin.delete_topics([TOPIC])
        await admin.close()


def test_a_renewal_that_comes_after_its_time_or_the_resignation_changes_nothing() -> None:
    wishes = Wishes()
    wishes.see(0, 1000, Wish("acquire", "a", length=500))
    assert wishes.holds("a", 1)
    wishes.see(1, 1500, Wish("renew", "a", 1, 500, 1500))
    assert wishes.terms["a"].until == 1500
    wishes.see(2, 1501, Wish("acquire", "a", length=500))
    assert wishes.holds("a", 3)
    wishes.see(3, 1600, Wish("renew", "a", 1, 500, 9000))
    assert wishes.holds("a", 3)
    wishes.see(4, 1700, Wish("release", "a", 3))
    wishes.see(5, 1701, Wish("renew", "a", 3, 500, 2001))
    assert not wishes.holds("a", 3)


@pytest.mark.parametrize("seed", range(20))
def test_who_began_to_read_later_decides_the_same(seed: int) -> None:
    """The others have read all of a day, and one what is left when the topic has forgotten the rest."""
    chance, whole, late = random.Random(seed), Wishes(), Wishes()
    moment, place = 0, 0
    first = chance.randrange(24 * HOUR)
    while moment < first + 3 * LONGEST * 1000:
        moment += chance.choice((1, 1000, HOUR // 4, HOUR))
        name = chance.choice("ab")
        term = whole.terms.get(name)
        wish = Wish("acquire", name, length=chance.choice((1000, HOUR, LONGEST * 1000)))
        if term is not None and chance.random() < 0.5:
            wish = Wish("renew", name, term.token, chance.choice((1000, HOUR, LONGEST * 1000)), term.until)
        elif term is not None and chance.random() < 0.2:
            wish = Wish("release", name, term.token)
        whole.see(place, moment, wish)
        if moment >= first:
            late.see(place, moment, wish)
        place += 1
        if moment >= first + 2 * LONGEST * 1000:
            for each in "ab":
                assert whole.is_held(each) == late.is_held(each)
                if whole.is_held(each):
                    assert whole.terms[each].token == late.terms[each].token
