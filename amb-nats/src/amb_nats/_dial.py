"""Connecting to one of the servers, and leaving it."""

from __future__ import annotations

import random
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from amb_core.config import mask_url
from amb_core.errors import AmbError, AuthenticationError, ConfigurationError, ConnectionLost, Unavailable

from ._client import NatsClient
from ._errors import NATIVE, translate
from ._link import Link

if TYPE_CHECKING:
    from .broker import NatsBroker

__all__ = ["dial"]

#: What leaving may take, seconds.
_LEAVING = 2.0
_SEED = re.compile(r"S[A-Z][A-Z2-7]{20,}")


@asynccontextmanager
async def dial(options: NatsBroker) -> AsyncIterator[Link]:
    """A link to one of the servers, the first in random order that lets us in.

    Raises: AuthenticationError, ConfigurationError, Unavailable."""
    found, failures = None, list[AmbError]()
    for url in random.sample(options.addresses, len(options.addresses)):
        try:
            found = await _connect(options, url)
            break
        except (AuthenticationError, ConfigurationError, Unavailable, ConnectionLost) as error:
            failures.append(error)
    if found is None:
        raise next((each for each in failures if isinstance(each, AuthenticationError)), failures[-1])
    try:
        yield found
    finally:
        await _leave(found.client)


async def _connect(options: NatsBroker, url: str) -> Link:
    arguments = _arguments(options)
    client = NatsClient()
    client.encrypted = url.startswith("tls://")
    made = Link(client, options.response_timeout)
    doing, connecting = f"connect to NATS at {mask_url(url)}", True

    async def failed(error: Exception) -> None:
        if connecting:
            raise error  # nats-py would go on trying
        await made.failed(error)

    try:
        with anyio.fail_after(options.connect_timeout):
            await client.connect(url, error_cb=failed, closed_cb=made.closed, **arguments)
            connecting = False
            await made.start()
        return made
    except BaseException as error:
        connecting = False
        client.abort()
        await _leave(client)
        if isinstance(error, NATIVE):
            raise translate(error, doing) from error
        raise


def _arguments(options: NatsBroker) -> dict[str, Any]:
    """What nats-py's ``connect`` takes."""
    if options.credentials is not None and not Path(options.credentials).is_file():
        raise ConfigurationError(f"NatsBroker: credentials: there is no file {options.credentials!r}")
    given: dict[str, Any] = {
        "name": options.name,
        "user": options.user,
        "password": options.password,
        "token": options.token,
        "user_credentials": options.credentials,
        "tls": _tls(options),
        "tls_hostname": options.tls_hostname,
        "inbox_prefix": options.inbox_prefix,
        **_seed(options.nkeys_seed),
        "connect_timeout": options.connect_timeout,
        "allow_reconnect": False,
        "flush_timeout": None,
        "ping_interval": max(1, round(options.response_timeout)),
        **options.client_options,
    }
    return given


def _seed(given: str | None) -> dict[str, str]:
    if given is None:
        return {}
    try:
        import nkeys  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(
            "NatsBroker: nkeys_seed needs the package nkeys: pip install 'amb-nats[nkeys]'"
        ) from None
    try:
        seed = given if _SEED.fullmatch(given) else Path(given).read_text().strip()
        nkeys.from_seed(bytearray(seed.encode())).public_key  # noqa: B018
    except Exception:  # whatever it says may hold the seed
        raise ConfigurationError("NatsBroker: nkeys_seed is no valid NKey seed, nor a file with one") from None
    return {"nkeys_seed_str": seed}


def _tls(options: NatsBroker) -> ssl.SSLContext | None:
    files = (options.tls_ca, options.tls_cert, options.tls_key)
    if not any(files):
        return None  # nats-py makes its own as soon as a server wants one
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"NatsBroker: a file in tls_ca, tls_cert or tls_key cannot be used: {error}"
        ) from error
    return context


async def _leave(client: NatsClient) -> None:
    """Close, also a link that does not answer any more."""
    with anyio.move_on_after(_LEAVING, shield=True) as scope:
        await client.close()
    if scope.cancelled_caught:
        client.abort()
        with anyio.move_on_after(_LEAVING, shield=True):
            await client.close()
