"""What goes wrong is said in one line, with a type, and without secrets."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from amb_core import MessageBus
from amb_core.errors import (
    AccessDenied,
    AmbError,
    AuthenticationError,
    BrokerUnavailable,
    ConfigurationError,
    LeaseLost,
    MessageTooLarge,
    NotFound,
    PublishUnknown,
    Unavailable,
)
from amb_sqs import SQSBroker
from amb_sqs._errors import translate
from botocore import exceptions as native

from tests.core._help import Collector

from .conftest import Make

pytestmark = pytest.mark.anyio


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean(error: BaseException) -> str:
    """The text of an error that a person reads: one line, no secret, in its causes neither."""
    text, chain = str(error), error
    assert text and "\n" not in text
    while chain is not None:
        assert "test-secret" not in f"{chain} {chain!r}"
        chain = chain.__cause__  # type: ignore[assignment]
    return text


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
async def test_a_wrong_host(make: Make, host: str) -> None:
    bus = MessageBus(make(endpoint_url=f"http://{host}:{free_port()}"), connect_timeout=1.0)
    with pytest.raises(BrokerUnavailable) as caught:
        await bus.connect()
    assert host in clean(caught.value) and isinstance(caught.value, ConnectionError)


async def test_a_region_that_is_none(make: Make) -> None:
    bus = MessageBus(make(region_name="eu west!"), connect_timeout=1.0)
    with pytest.raises(ConfigurationError, match="region") as caught:
        await bus.connect()
    clean(caught.value)


async def test_no_region_and_no_credentials(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("amb_sqs._client._session", None)
    with pytest.raises(ConfigurationError, match="region_name"):
        await MessageBus(SQSBroker(), connect_timeout=15.0).connect()
    with pytest.raises(AuthenticationError, match="aws_access_key_id"):
        await MessageBus(
            make(aws_access_key_id=None, aws_secret_access_key=None, region_name="us-east-1"), connect_timeout=15.0
        ).connect()


async def test_a_missing_queue_leaves_the_rest_of_the_bus_alone(make: Make) -> None:
    seen = Collector()
    async with MessageBus(make()) as bus:
        await bus.subscribe("jobs", seen, group="g")
        async with MessageBus(make(auto_create=False)) as strict:
            await strict.subscribe("jobs", seen, group="g")
            with pytest.raises(NotFound) as caught:
                await strict.subscribe("missing", seen, group="g")
            assert "missing" in clean(caught.value)
            with pytest.raises(NotFound, match="missing"):
                await strict.publish("missing", 1)
            await strict.publish("jobs", 1)
            await seen.wait()


async def test_a_missing_sns_topic(make: Make, prefix: str) -> None:
    with pytest.raises(NotFound, match=f"{prefix}messages"):
        await MessageBus(make(use_sns_fanout=True, auto_create=False), connect_timeout=15.0).connect()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("AWS.SimpleQueueService.NonExistentQueue", NotFound),
        ("InvalidClientTokenId", AuthenticationError),
        ("SignatureDoesNotMatch", AuthenticationError),
        ("ExpiredTokenException", AuthenticationError),
        ("AccessDeniedException", AccessDenied),
        ("KMS.AccessDeniedException", AccessDenied),
        ("ReceiptHandleIsInvalid", LeaseLost),
        ("AWS.SimpleQueueService.BatchRequestTooLong", MessageTooLarge),
        ("ThrottlingException", Unavailable),
        ("OverLimit", Unavailable),
        ("InternalError", Unavailable),
        ("InvalidParameterValue", ConfigurationError),
    ],
)
def test_every_code_has_a_type(code: str, kind: type[AmbError]) -> None:
    """The emulator checks neither credentials nor policies: what AWS would answer is written here by its code."""
    response: Any = {"Error": {"Code": code, "Message": "said\nso."}}
    error = translate(native.ClientError(response, "SendMessage"), "publish to 'a'")
    assert type(error) is kind and clean(error).startswith("publish to 'a': ")
    assert type(translate({"Code": code, "Message": "said"}, "publish")) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (native.EndpointConnectionError(endpoint_url="http://x"), Unavailable),
        (native.ConnectTimeoutError(endpoint_url="http://x"), Unavailable),
        (native.ReadTimeoutError(endpoint_url="http://x"), PublishUnknown),
        (native.ConnectionClosedError(endpoint_url="http://x"), PublishUnknown),
        (TimeoutError(), PublishUnknown),
        (ConnectionResetError("reset"), PublishUnknown),
        (native.NoCredentialsError(), AuthenticationError),
    ],
)
def test_what_may_have_been_stored_is_unknown(error: Exception, kind: type[AmbError]) -> None:
    assert type(translate(error, "publish to 'a'", unknown=True)) is kind
