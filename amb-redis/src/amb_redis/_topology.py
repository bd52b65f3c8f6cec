"""The servers that the options name: a single one, Sentinel's master, or a Cluster's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from amb_core.errors import ConfigurationError
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from ._links import Node
from ._servers import Servers

if TYPE_CHECKING:
    from .broker import RedisBroker

__all__ = ["servers"]


@asynccontextmanager
async def servers(options: RedisBroker) -> AsyncIterator[Servers]:
    """The servers, connected."""
    try:
        found = _found(options, _arguments(options))
    except TypeError as error:
        raise ConfigurationError(
            f"RedisBroker: redis-py does not take an option of client_options or of the URL: {error}"
        ) from error
    try:
        await found.begin()
        yield found
    finally:
        await found.close()


def _found(options: RedisBroker, known: dict[str, Any]) -> Servers:
    if options.cluster_nodes:
        return Servers(options, cluster=_cluster(options, known))
    if options.sentinel_nodes:
        sentinel = _sentinel(options, known)
        pool = _sentinel_pool(options, sentinel, known)
        return Servers(options, one=Node(pool.make_connection, options), aside=sentinel.aclose)
    return Servers(options, one=Node(ConnectionPool(**known).make_connection, options))


def _arguments(options: RedisBroker) -> dict[str, Any]:
    """redis-py's arguments. Its own time-outs and retries are off: they would hide an outage."""
    known: dict[str, Any] = dict(parse_url(options.url)) if not options.cluster_nodes else {}
    for name in ("db", "username", "password"):
        if getattr(options, name) is not None:
            known[name] = getattr(options, name)
    if options.ssl or known.get("connection_class") is SSLConnection:
        known["connection_class"] = SSLConnection
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"):
            known[name] = getattr(options, name)
    known.update(
        socket_timeout=None,
        socket_connect_timeout=options.connect_timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=False,
    )
    return known | options.client_options


def _cluster(options: RedisBroker, known: dict[str, Any]) -> RedisCluster:
    nodes = [parse_url(url) for url in options.cluster_nodes]
    first = dict(nodes[0])
    tls = known.pop("connection_class", first.pop("connection_class", Connection)) is SSLConnection
    for name in ("username", "password"):
        if name in first:
            known.setdefault(name, first[name])
    if tls:
        known["ssl"] = True
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"):
            known[name] = getattr(options, name)
    known.pop("retry")
    startup = [ClusterNode(str(node.get("host", "localhost")), int(node.get("port", 6379))) for node in nodes]
    return RedisCluster(startup_nodes=startup, retry=Retry(NoBackoff(), 0), require_full_coverage=False, **known)


def _sentinel(options: RedisBroker, known: dict[str, Any]) -> Sentinel:
    nodes = [dict(parse_url(url)) for url in options.sentinel_nodes]
    own: dict[str, Any] = {name: nodes[0][name] for name in ("username", "password") if name in nodes[0]}
    if nodes[0].get("connection_class") is SSLConnection:
        own |= {"ssl": True} | {name: value for name, value in known.items() if name.startswith("ssl_")}
    own |= {"socket_timeout": options.connect_timeout, "socket_connect_timeout": options.connect_timeout}
    watchers = [(node.get("host", "localhost"), node.get("port", 26379)) for node in nodes]
    return Sentinel(watchers, sentinel_kwargs=own)  # type: ignore[no-untyped-call]


def _sentinel_pool(options: RedisBroker, sentinel: Sentinel, known: dict[str, Any]) -> SentinelConnectionPool:
    arguments = {name: value for name, value in known.items() if name not in ("host", "port", "connection_class")}
    arguments["ssl"] = known.get("connection_class") is SSLConnection
    return SentinelConnectionPool(options.sentinel_service, sentinel, **arguments)  # type: ignore[no-untyped-call]
