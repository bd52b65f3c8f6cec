"""Everything that is said to AWS, typed: the only file that sees aiobotocore, which has no types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from amb_core.errors import AmbError, ConfigurationError

from ._errors import NATIVE, refused, translate

if TYPE_CHECKING:
    from .broker import SQSBroker

__all__ = ["BATCH", "Aws", "Entry", "Received", "aws"]

#: The most entries of a batch.
BATCH = 10
#: The most bytes of a batch, and of a message.
BYTES, BYTES_SNS = 1_048_576, 262_144
_SYSTEM = ["ApproximateReceiveCount", "ApproximateFirstReceiveTimestamp", "MessageGroupId", "SentTimestamp"]

#: One for all connections: it reads AWS's descriptions of its services, which takes a tenth of a second, once.
_session: AioSession | None = None


class Received(msgspec.Struct):
    """A message as SQS hands it over."""

    id: str
    handle: str
    body: str
    #: How often it was handed to anybody, and when (epoch seconds) for the first time; when it was sent.
    count: int
    first: float
    sent: float
    group: str | None
    attributes: dict[str, str]


class Entry(msgspec.Struct):
    """A message to be sent to a queue or a topic."""

    index: int
    body: str
    #: Whole seconds.
    delay: int = 0
    #: FIFO only: the sequence it belongs to, and what a second copy is known by.
    group: str | None = None
    dedup: str | None = None
    attributes: Mapping[str, str] = {}


@asynccontextmanager
async def aws(options: SQSBroker) -> AsyncIterator[Aws]:
    """Clients for SQS and, where it is used, SNS. Asks nobody anything yet."""
    global _session
    _session = _session or AioSession()
    config: dict[str, Any] = {
        # Whether something is tried again is the core's decision.
        "retries": {"total_max_attempts": 1},
        # Every subscription has a long poll open.
        "max_pool_connections": 10_000,
        "connect_timeout": options.connect_timeout,
        "read_timeout": options.wait_time_seconds + options.response_timeout,
        # Botocore puts its own together for every call, which takes a tenth of the call's time.
        "user_agent": "amb-sqs",
        **options.client_options,
    }
    common: dict[str, Any] = {
        "region_name": options.region,
        "aws_access_key_id": options.aws_access_key_id,
        "aws_secret_access_key": options.aws_secret_access_key,
        "aws_session_token": options.aws_session_token,
    }
    if (options.endpoint or "").startswith("http:"):
        common["verify"] = False  # spares reading all certificates of the system for nothing
    async with AsyncExitStack() as stack:
        try:
            common["config"] = AioConfig(**config)
            create: Any = _session.create_client
            sqs: Any = await stack.enter_async_context(create("sqs", endpoint_url=options.endpoint, **common))
            sns: Any = None
            if options.use_sns_fanout:
                sns = await stack.enter_async_context(create("sns", endpoint_url=options.sns_endpoint, **common))
        except (*NATIVE, TypeError, ValueError) as error:
            raise _unusable(error) from error
        yield Aws(sqs, sns, options.response_timeout)


def _unusable(error: BaseException) -> AmbError:
    said = translate(error, "make a client for SQS")
    return said if not isinstance(error, (TypeError, ValueError)) else ConfigurationError(f"SQSBroker: {error}")


class Aws:
    """SQS and SNS. Every method raises an `AmbError`; batches return the error of each entry that failed."""

    def __init__(self, sqs: Any, sns: Any, patience: float) -> None:
        self._sqs, self._sns, self._patience = sqs, sns, patience

    async def _call(self, verb: Callable[..., Any], doing: str, *, unknown: bool = False, **arguments: Any) -> Any:
        try:
            async with asyncio.timeout(self._patience):
                return await verb(**arguments)
        except NATIVE as error:
            raise translate(error, doing, unknown=unknown) from error

    async def list_queues(self, prefix: str) -> list[str]:
        """The URLs of all queues whose names begin so."""
        urls: list[str] = []
        more: dict[str, Any] = {}
        while True:
            doing = f"list the queues {prefix}*"
            page = await self._call(self._sqs.list_queues, doing, QueueNamePrefix=prefix, MaxResults=1000, **more)
            urls += page.get("QueueUrls", ())
            if "NextToken" not in page:
                return urls
            more = {"NextToken": page["NextToken"]}

    async def queue_url(self, name: str, owner: str | None = None) -> str:
        """Where the queue is. Raises: NotFound."""
        account: dict[str, Any] = {} if owner is None else {"QueueOwnerAWSAccountId": owner}
        answer = await self._call(self._sqs.get_queue_url, f"find the queue {name!r}", QueueName=name, **account)
        return str(answer["QueueUrl"])

    async def create_queue(self, name: str, attributes: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Make the queue, or make sure that it has the attributes; its URL."""
        doing = f"make the queue {name!r}"
        try:
            async with asyncio.timeout(self._patience):
                made = await self._sqs.create_queue(QueueName=name, Attributes=dict(attributes), tags=dict(tags))
            return str(made["QueueUrl"])
        except NATIVE as error:
            if not refused(error, "QueueAlreadyExists", "QueueNameExists"):
                raise translate(error, doing) from error
        url = await self.queue_url(name)
        await self.set_attributes(url, {key: value for key, value in attributes.items() if key != "FifoQueue"})
        return url

    async def set_attributes(self, url: str, attributes: Mapping[str, str]) -> None:
        """Change attributes of the queue."""
        doing = f"change the queue {_name(url)!r}"
        await self._call(self._sqs.set_queue_attributes, doing, QueueUrl=url, Attributes=dict(attributes))

    async def queue_arn(self, url: str) -> str:
        """What other services call the queue."""
        doing = f"look at the queue {_name(url)!r}"
        found = await self._call(self._sqs.get_queue_attributes, doing, QueueUrl=url, AttributeNames=["QueueArn"])
        return str(found["Attributes"]["QueueArn"])

    async def counts(self, url: str) -> tuple[int, int]:
        """About how many messages the queue has that wait, and that somebody holds."""
        names = [f"ApproximateNumberOfMessages{which}" for which in ("", "Delayed", "NotVisible")]
        doing = f"look at the queue {_name(url)!r}"
        found = await self._call(self._sqs.get_queue_attributes, doing, QueueUrl=url, AttributeNames=names)
        now, later, held = (int(found["Attributes"].get(name, 0)) for name in names)
        return now + later, held

    async def delete_queue(self, url: str) -> None:
        """Delete it with all that is in it."""
        await self._call(self._sqs.delete_queue, f"delete the queue {_name(url)!r}", QueueUrl=url)

    async def tags(self, url: str) -> dict[str, str]:
        """The queue's tags."""
        doing = f"read the tags of the queue {_name(url)!r}"
        return dict((await self._call(self._sqs.list_queue_tags, doing, QueueUrl=url)).get("Tags", {}))

    async def tag(self, url: str, tags: Mapping[str, str]) -> None:
        """Set tags of the queue."""
        doing = f"tag the queue {_name(url)!r}"
        await self._call(self._sqs.tag_queue, doing, QueueUrl=url, Tags=dict(tags))

    async def receive(self, url: str, limit: int, wait: int, lease: int) -> list[Received]:
        """Up to `limit` messages, after up to `wait` seconds."""
        try:
            async with asyncio.timeout(wait + self._patience):
                answer = await self._sqs.receive_message(
                    QueueUrl=url,
                    MaxNumberOfMessages=limit,
                    WaitTimeSeconds=wait,
                    VisibilityTimeout=lease,
                    MessageSystemAttributeNames=_SYSTEM,
                    MessageAttributeNames=["All"],
                )
        except NATIVE as error:
            raise translate(error, f"receive from {_name(url)!r}") from error
        return [_received(message) for message in answer.get("Messages", ())]

    async def send(self, url: str, entries: Sequence[Entry], to: str) -> dict[int, AmbError]:
        """Store the entries in the queue."""
        native = [_queue_entry(number, entry) for number, entry in enumerate(entries)]
        answer = await self._call(
            self._sqs.send_message_batch, f"publish to {to}", unknown=True, QueueUrl=url, Entries=native
        )
        return _failed(answer, [entry.index for entry in entries], f"publish to {to}")

    async def number(self, url: str, entry: Entry, to: str) -> int:
        """Store the entry in a FIFO queue; the number that it has there."""
        doing = f"publish to {to}"
        native = {"MessageBody": entry.body, **_common(entry)}
        return int((await self._call(self._sqs.send_message, doing, QueueUrl=url, **native))["SequenceNumber"])

    async def delete(self, url: str, handles: Sequence[tuple[int, str]]) -> dict[int, AmbError]:
        """Delete messages, each with an index for its error."""
        native = [{"Id": str(n), "ReceiptHandle": handle} for n, (_, handle) in enumerate(handles)]
        doing = f"settle on {_name(url)!r}"
        answer = await self._call(self._sqs.delete_message_batch, doing, QueueUrl=url, Entries=native)
        return _failed(answer, [index for index, _ in handles], doing)

    async def hide(self, url: str, handles: Sequence[tuple[int, str, int]]) -> dict[int, AmbError]:
        """Let nobody see the messages for so many seconds from now, each with an index for its error."""
        native = [
            {"Id": str(n), "ReceiptHandle": handle, "VisibilityTimeout": seconds}
            for n, (_, handle, seconds) in enumerate(handles)
        ]
        doing = f"change the visibility of messages on {_name(url)!r}"
        answer = await self._call(self._sqs.change_message_visibility_batch, doing, QueueUrl=url, Entries=native)
        return _failed(answer, [index for index, _, _ in handles], doing)

    # --- SNS

    async def create_topic(self, name: str, fifo: bool) -> str:
        """The ARN of the topic, which is made if there is none."""
        attributes = {"FifoTopic": "true", "ContentBasedDeduplication": "false"} if fifo else {}
        doing = f"make the SNS topic {name!r}"
        made = await self._call(self._sns.create_topic, doing, Name=name, Attributes=attributes)
        return str(made["TopicArn"])

    async def find_topic(self, name: str) -> str | None:
        """The ARN of the topic, if there is one."""
        more: dict[str, Any] = {}
        while True:
            page = await self._call(self._sns.list_topics, f"find the SNS topic {name!r}", **more)
            for topic in page.get("Topics", ()):
                if topic["TopicArn"].endswith(f":{name}"):
                    return str(topic["TopicArn"])
            if not page.get("NextToken"):
                return None
            more = {"NextToken": page["NextToken"]}

    async def subscribe(self, topic: str, url: str) -> str:
        """Let the topic deliver to the queue; the ARN of the subscription."""
        queue, doing = await self.queue_arn(url), f"subscribe the queue {_name(url)!r} to {topic!r}"
        allow = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": queue,
            "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        await self.set_attributes(url, {"Policy": policy})
        made = await self._call(
            self._sns.subscribe,
            doing,
            TopicArn=topic,
            Protocol="sqs",
            Endpoint=queue,
            Attributes={"RawMessageDelivery": "true"},
            ReturnSubscriptionArn=True,
        )
        return str(made["SubscriptionArn"])

    async def unsubscribe(self, subscription: str) -> None:
        """End a subscription."""
        await self._call(self._sns.unsubscribe, "end a subscription of SNS", SubscriptionArn=subscription)

    async def publish(self, topic: str, entries: Sequence[Entry], to: str) -> dict[int, AmbError]:
        """Hand the entries to the topic."""
        native = [_topic_entry(number, entry) for number, entry in enumerate(entries)]
        answer = await self._call(
            self._sns.publish_batch,
            f"publish to {to}",
            unknown=True,
            TopicArn=topic,
            PublishBatchRequestEntries=native,
        )
        return _failed(answer, [entry.index for entry in entries], f"publish to {to}")


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _received(message: Any) -> Received:
    system = message.get("Attributes", {})
    attributes = {
        name: str(value.get("StringValue", "")) for name, value in message.get("MessageAttributes", {}).items()
    }
    return Received(
        message["MessageId"],
        message["ReceiptHandle"],
        message["Body"],
        int(system.get("ApproximateReceiveCount", 1)),
        int(system.get("ApproximateFirstReceiveTimestamp", 0)) / 1000,
        int(system.get("SentTimestamp", 0)) / 1000,
        system.get("MessageGroupId"),
        attributes,
    )


def _common(entry: Entry) -> dict[str, Any]:
    native: dict[str, Any] = {}
    if entry.group is not None:
        native["MessageGroupId"] = entry.group
        native["MessageDeduplicationId"] = entry.dedup
    if entry.attributes:
        native["MessageAttributes"] = {
            name: {"DataType": "String", "StringValue": value} for name, value in entry.attributes.items()
        }
    return native


def _queue_entry(number: int, entry: Entry) -> dict[str, Any]:
    native = {"Id": str(number), "MessageBody": entry.body, **_common(entry)}
    if entry.delay:
        native["DelaySeconds"] = entry.delay
    return native


def _topic_entry(number: int, entry: Entry) -> dict[str, Any]:
    return {"Id": str(number), "Message": entry.body, **_common(entry)}


def _failed(answer: Any, indexes: Sequence[int], doing: str) -> dict[int, AmbError]:
    return {indexes[int(failed["Id"])]: translate(failed, doing) for failed in answer.get("Failed", ())}
