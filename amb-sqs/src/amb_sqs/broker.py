"""The options of the SQS broker, and what it can do with them."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

import msgspec
from amb_core.broker import Capabilities, Connection
from amb_core.config import Secret, masked_repr, validate
from amb_core.errors import ConfigurationError

__all__ = ["AWSSQSBroker", "SQSBroker"]

#: The longest time that SQS keeps a message, seconds.
_LONGEST = 14 * 24 * 3600
#: What fits when all of it has to be written as base64, with 64 KiB for the headers.
_MAX_BODY, _MAX_BODY_SNS = 720 * 1024, 144 * 1024
#: What AMB sets in botocore's configuration, because it depends on it.
_OURS = {"retries", "connect_timeout", "read_timeout", "max_pool_connections"}
_REGION_IN_HOST = re.compile(r"(?:^|\.)(?:sqs|queue)\.([a-z0-9-]+)\.(?:amazonaws|api\.aws)")
_NAME = re.compile(r"[A-Za-z0-9_-]*")

_Positive = Annotated[float, msgspec.Meta(gt=0)]


class SQSBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Amazon SQS, with SNS for fan-out if asked for.

    ``SQSBroker(region_name="eu-west-1")``. Credentials come from where the AWS tools look for them, unless given.
    """

    messaging_system: ClassVar[str] = "aws_sqs"
    #: Where SQS is, if not at AWS's address for the region: ``https://sqs.eu-west-1.amazonaws.com``, an emulator's
    #: ``http://localhost:4566``; ``sqs://eu-west-1`` names only the region.
    endpoint_url: str | None = None
    #: AWS's region, if `endpoint_url` does not name it; default: the AWS configuration's.
    region_name: str | None = None
    #: Explicit credentials; roles are better.
    aws_access_key_id: Secret | None = None
    aws_secret_access_key: Secret | None = None
    aws_session_token: Secret | None = None
    #: What the names of AMB's queues begin with. None of two prefixes in one account may begin with the other.
    queue_prefix: str = "amb-"
    #: Use this one queue for everything, by its URL or by its name.
    queue_url: str | None = None
    queue_name: str | None = None
    #: The group of subscriptions that name none. With one queue for everything the default is ``shared``.
    consumer_group: str | None = None
    #: Whether queues for topics may be made. Those for replies always are.
    auto_create: bool = True
    #: Seconds after which a delivery that is neither settled nor extended goes to another member.
    visibility_timeout: Annotated[int, msgspec.Meta(ge=1, le=43200)] = 30
    #: Seconds of a long poll.
    wait_time_seconds: Annotated[int, msgspec.Meta(ge=1, le=20)] = 20
    #: The most messages of one receive call.
    max_number_of_messages: Annotated[int, msgspec.Meta(ge=1, le=10)] = 10
    #: Seconds that queues keep a message.
    message_retention: Annotated[int, msgspec.Meta(ge=60, le=_LONGEST)] = _LONGEST
    #: FIFO queues: order per key, and per topic for messages without one; five minutes of deduplication by id.
    use_fifo: bool = False
    #: FIFO: messages with equal topic, key and body are copies, whatever their ids.
    content_based_deduplication: bool = False
    #: A queue for dead letters: those of SQS's redrive policy, and a copy of AMB's own.
    dlq_arn: str | None = None
    #: How often a message is received before the redrive policy takes it; default 3.
    max_receive_count: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    #: The topic for dead letters of buses that name none; with `dlq_arn` the default is that queue's name.
    dead_letter_queue: str | None = None
    #: Publish to one SNS topic, which hands every message to every queue; subscribers filter.
    use_sns_fanout: bool = False
    #: What the name of the SNS topic begins with.
    sns_topic_prefix: str = "amb-"
    #: Where SNS is, if not at AWS's address; default: an emulator's `endpoint_url`.
    sns_endpoint_url: str | None = None
    #: A second queue beside each for CRITICAL, URGENT and HIGH, read first.
    priority_lanes: bool = False
    #: Seconds for which a publisher relies on what it knows of the queues; a new subscription waits so long.
    discovery_interval: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    #: Seconds to connect.
    connect_timeout: _Positive = 5.0
    #: Seconds without an answer after which a call has failed.
    response_timeout: _Positive = 10.0
    #: Further keyword arguments for botocore's ``Config``.
    client_options: dict[str, object] = {}

    def __post_init__(self) -> None:
        validate(self)
        for option, url in (("endpoint_url", self.endpoint_url), ("sns_endpoint_url", self.sns_endpoint_url)):
            _check_url(option, url)
        for option, name in (("queue_prefix", self.queue_prefix), ("sns_topic_prefix", self.sns_topic_prefix)):
            if not _NAME.fullmatch(name) or len(name) > 32:
                raise ConfigurationError(f"SQSBroker: {option} has up to 32 letters, digits, hyphens and underscores")
        if (self.aws_access_key_id is None) != (self.aws_secret_access_key is None):
            raise ConfigurationError("SQSBroker: give aws_access_key_id and aws_secret_access_key, or neither")
        if taken := _OURS & self.client_options.keys():
            raise ConfigurationError(
                f"SQSBroker: client_options must not hold {', '.join(sorted(taken))}: AMB depends on its own value"
            )
        self._check_modes()
        self._complete()

    def _check_modes(self) -> None:
        if self.queue_url is not None and self.queue_name is not None:
            raise ConfigurationError("SQSBroker: give queue_url or queue_name, not both")
        if self.one_queue and (self.use_sns_fanout or self.priority_lanes):
            raise ConfigurationError("SQSBroker: with one queue for everything there is no fan-out and no lane")
        if self.priority_lanes and (self.use_fifo or self.use_sns_fanout):
            raise ConfigurationError("SQSBroker: priority_lanes works with standard queues and without SNS only")
        if self.content_based_deduplication and not self.use_fifo:
            raise ConfigurationError("SQSBroker: content_based_deduplication needs use_fifo=True")
        if self.max_receive_count is not None and self.dlq_arn is None:
            raise ConfigurationError("SQSBroker: max_receive_count needs dlq_arn, where messages go after it")
        if self.dlq_arn is not None and not re.fullmatch(r"arn:[\w-]+:sqs:[\w-]+:\d*:[\w.-]+", self.dlq_arn):
            raise ConfigurationError("SQSBroker: dlq_arn must look like arn:aws:sqs:us-east-1:123456789012:name")

    def _complete(self) -> None:
        derived: dict[str, object] = {}
        if self.dlq_arn is not None:
            derived["max_receive_count"] = self.max_receive_count or 3
            derived["dead_letter_queue"] = self.dead_letter_queue or self.dlq_arn.rpartition(":")[2]
        if self.one_queue and self.consumer_group is None:
            derived["consumer_group"] = "shared"
        for name, value in derived.items():
            msgspec.structs.force_setattr(self, name, value)

    def __repr__(self) -> str:
        return masked_repr(self)

    @property
    def one_queue(self) -> bool:
        """One queue for everything, rather than one for each group."""
        return self.queue_url is not None or self.queue_name is not None

    @property
    def fifo(self) -> bool:
        """Queues are FIFO queues."""
        return self.use_fifo or (self.queue_url or self.queue_name or "").endswith(".fifo")

    @property
    def region(self) -> str | None:
        """The region, if it is known here."""
        host = urlsplit(self.endpoint_url or "").hostname or ""
        if (self.endpoint_url or "").startswith("sqs:"):
            return host
        if found := _REGION_IN_HOST.search(host):
            return found[1]
        # Emulators have no regions, but requests to them are signed for one.
        return self.region_name or ("us-east-1" if host else None)

    @property
    def endpoint(self) -> str | None:
        """Where SQS is, if not where AWS has it."""
        return None if (self.endpoint_url or "sqs:").startswith("sqs:") else self.endpoint_url

    @property
    def sns_endpoint(self) -> str | None:
        """Where SNS is, if not where AWS has it."""
        host = urlsplit(self.endpoint or "").hostname or ""
        return self.sns_endpoint_url or (None if _REGION_IN_HOST.search(host) else self.endpoint)

    @property
    def capabilities(self) -> Capabilities:
        """FIFO, SNS, lanes and the single queue make a difference."""
        return Capabilities(
            durable=True,
            confirm="replicated",
            groups=True,
            durable_groups=True,
            redelivery="broker",
            lease=float(self.visibility_timeout),
            extend_lease=True,
            delivery_count="envelope" if self.one_queue else "native",
            delay="native",
            max_delay=float(self.message_retention),
            order="key" if self.fifo else "none",
            wildcards="client",
            priority="lanes" if self.priority_lanes else "prefetch",
            dedup=300.0 if self.fifo else 0.0,
            max_message=_MAX_BODY_SNS if self.use_sns_fanout else _MAX_BODY,
            elections=True,
        )

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Connect to SQS; see `amb_core.broker.Broker.connect`."""
        from ._connection import connect

        return connect(self)


AWSSQSBroker = SQSBroker


def _check_url(option: str, url: str | None) -> None:
    if url is None:
        return
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https", "sqs")
        or not parts.hostname
        or (parts.scheme, option[:3]) == ("sqs", "sns")
    ):
        raise ConfigurationError(f"SQSBroker: {option} must look like https://sqs.eu-west-1.amazonaws.com")
    try:
        _ = parts.port
    except ValueError as error:
        raise ConfigurationError(f"SQSBroker: {option} has no valid port") from error
