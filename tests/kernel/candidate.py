"""A process that runs for a leadership: ``python -m tests.kernel.candidate NAME TTL``, on the environment's broker.

It writes a line for each moment at which it looked whether it leads, and did: the moment, by the clock that all
processes of the machine share, and the token. The moment is taken before the look.
"""

from __future__ import annotations

import sys
import time

import anyio
from amb_core import AmbError, MessageBus
from amb_kernel import KernelSpace, Leadership

_LOOK = 0.004


async def _lead(leadership: Leadership) -> None:
    while True:
        moment = time.monotonic()
        if not leadership:
            return
        print(f"{moment:.6f} {leadership.token}", flush=True)
        await anyio.sleep(_LOOK)


async def main(name: str, ttl: float) -> None:
    """Run for the leadership, lead, and run again, until killed."""
    async with KernelSpace(name=name, message_bus=MessageBus(connect_timeout=60)) as kernel:
        while True:
            try:
                await _lead(await kernel.elect_leader("cluster.leader", ttl, wait=True))
            except AmbError:  # the broker is gone
                await anyio.sleep(ttl / 10)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], float(sys.argv[2]))
