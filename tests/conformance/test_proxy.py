"""The cable that misbehaves on request: each of its faults is the fault it says it is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
from amb_core.testing import FaultProxy, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])]

BROKEN = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError)


async def echo(stream: anyio.abc.SocketStream) -> None:
    """Send back what comes."""
    async with stream:
        try:
            async for chunk in stream:
                await stream.send(chunk)
        except anyio.BrokenResourceError:
            return


@asynccontextmanager
async def proxied() -> AsyncIterator[FaultProxy]:
    """A proxy in front of a server that echoes."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with FaultProxy.to("127.0.0.1", port) as proxy:
            yield proxy
        group.cancel_scope.cancel()


async def ask(stream: anyio.abc.SocketStream, data: bytes = b"hello") -> bytes:
    """What comes back."""
    with anyio.fail_after(5):
        await stream.send(data)
        return await stream.receive()


async def test_it_forwards_both_ways_and_counts() -> None:
    async with proxied() as proxy:
        for _ in range(2):
            async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
                assert await ask(stream) == b"hello"
                assert proxy.links == 1
            await eventually(lambda: proxy.links == 0, "the link stays", 5)
        assert proxy.accepted == 2


async def test_reset_breaks_what_is_there_and_takes_what_comes() -> None:
    async with proxied() as proxy:
        async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
            await ask(stream)
            assert proxy.reset() == 1
            with pytest.raises(BROKEN):
                await ask(stream)
        async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
            assert await ask(stream) == b"hello"


async def test_refusing_lasts_until_it_is_restored() -> None:
    async with proxied() as proxy:
        proxy.refuse()
        for _ in range(2):
            with pytest.raises((*BROKEN, OSError)):
                async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
                    await ask(stream)
        proxy.restore()
        async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
            assert await ask(stream) == b"hello"


@pytest.mark.parametrize("directions", [(), ("up",), ("down",)])
async def test_a_black_hole_is_silence_and_no_end(directions: tuple[str, ...]) -> None:
    async with proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as stream:
        await ask(stream)
        proxy.black_hole(*directions)  # type: ignore[arg-type]
        await stream.send(b"lost")
        with anyio.move_on_after(0.3) as waiting:
            await stream.receive()
        assert waiting.cancelled_caught
        proxy.restore()
        with pytest.raises(BROKEN):  # what was swallowed stays lost: the connection must not go on as if nothing was
            await ask(stream)


async def test_latency_holds_back_what_flows() -> None:
    async with proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as stream:
        proxy.latency = 0.2
        began = time.monotonic()
        assert await ask(stream) == b"hello"
        assert time.monotonic() - began >= 0.4


async def test_cutting_after_so_many_bytes_cuts_there() -> None:
    async with proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as stream:
        proxy.cut_after(8)
        assert await ask(stream) == b"hello"
        with pytest.raises(BROKEN):
            await ask(stream)
