"""A group of consumers: found, or made with the place where it begins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from aiokafka import TopicPartition
from aiokafka import errors as native
from amb_core.broker import Feed, Source
from amb_core.topics import is_pattern

from ._clients import running
from ._errors import NATIVE, translate
from ._feed import GroupFeed
from ._holds import HOLDS
from ._member import has_commits
from ._wire import group_of

if TYPE_CHECKING:
    from ._connection import KafkaConnection

__all__ = ["open_group"]

#: A cluster makes its topic of offsets when the first group asks for it, and reads it when it starts.
_NOT_YET = (
    native.GroupCoordinatorNotAvailableError, native.GroupLoadInProgressError, native.NotCoordinatorForGroupError,
)  # fmt: skip


@asynccontextmanager
async def open_group(connection: KafkaConnection, source: Source) -> AsyncIterator[Feed]:
    """See `amb_core.broker.Connection.open`."""
    options, names, topics = connection.options, connection.names, connection.topics
    group, retries = group_of(source)
    doing = f"join the group {source.group!r} on {source.pattern!r}"
    if is_pattern(source.pattern):
        await topics.look()
    else:
        topics.forget(names.name(source.pattern))
        await topics.need([names.name(source.pattern)])
    await topics.need_retries(retries, HOLDS + 1)
    made = await _made(connection, source, group, retries, doing)
    feed = GroupFeed(connection, source, group, retries)
    async with running(feed.consumer, doing, options.connect_timeout):
        try:
            await feed.join(made)
            yield feed
        finally:
            feed.close()


async def _made(connection: KafkaConnection, source: Source, group: str, retries: str, doing: str) -> bool:
    """Make the group, if it is not there: commit where it begins. True: it was not there.

    A topic without a commit is then a new one, to be read from its beginning. Kafka refuses the commit of somebody
    who is no member once there are members, so of several that come at once the first to join decides.
    """
    try:
        if await _committed(connection, group):
            return False
        known, options = connection.topics.known, connection.options
        reads = connection.names.read_by(source.pattern, known)
        partitions = [TopicPartition(name, number) for name in reads for number in range(known.get(name, 0))]
        consumer = connection.clients.consumer(group)
        async with running(consumer, doing, options.connect_timeout):
            with anyio.fail_after(options.response_timeout):
                earliest = "earliest" in (source.start, options.auto_offset_reset)
                where = consumer.beginning_offsets if earliest else consumer.end_offsets
                mark = TopicPartition(retries, 0)
                consumer.assign([*partitions, mark])
                offsets = await where(partitions) if partitions else {}
                await consumer.commit({mark: 0, **offsets})
    except native.CommitFailedError:
        return False
    except NATIVE as error:
        raise translate(error, doing) from error
    return True


async def _committed(connection: KafkaConnection, group: str) -> bool:
    """Whether the group has any commit."""
    with anyio.fail_after(connection.options.response_timeout):
        while True:
            try:
                return await has_commits(connection.admin, group)
            except _NOT_YET:
                await anyio.sleep(0.1)
