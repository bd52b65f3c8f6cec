"""Programs that fault tests end, kill and freeze: each signal does what it says."""

from __future__ import annotations

import signal
import sys
import time

import anyio
import pytest
from amb_core.testing import Child, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])]

#: Says ``beat`` a hundred times a second, echoes what it is told, and leaves with 7 when it is asked to.
PROGRAM = """
import json, os, signal, sys, threading
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
def say(**facts): os.write(1, (json.dumps(facts) + "\\n").encode())
def listen():
    for line in sys.stdin: say(event="told", command=json.loads(line))
threading.Thread(target=listen, daemon=True).start()
say(event="ready", mark=os.environ.get("MARK"))
while True:
    say(event="beat")
    signal.sigtimedwait([], 0.01)
"""
COMMAND = [sys.executable, "-c", PROGRAM]


async def test_what_it_says_is_heard_and_what_it_is_told_arrives() -> None:
    async with Child.program(COMMAND, {"MARK": "set"}) as child:
        assert (await child.event("ready"))[0]["mark"] == "set"
        await child.tell(do="this")
        assert (await child.event("told"))[0]["command"] == {"do": "this"}


async def test_a_program_that_is_asked_to_end_ends_in_its_own_way() -> None:
    async with Child.program(COMMAND) as child:
        await child.event("ready")
        child.terminate()
        assert await child.ends() == 7
        child.terminate()  # it is gone: nothing to do


async def test_a_killed_program_has_no_say() -> None:
    async with Child.program(COMMAND) as child:
        await child.event("ready")
        child.kill()
        assert await child.ends() == -signal.SIGKILL
        await eventually(lambda: child.ended, "the end of what it said is not noticed")


async def test_a_frozen_program_is_silent_until_it_thaws() -> None:
    async with Child.program(COMMAND) as child:
        await child.event("beat", 5)
        child.freeze()
        await eventually(lambda: _state(child.pid) == "T", "it is not stopped")
        await anyio.sleep(0.1)  # what it had said before is read meanwhile
        before = len(child.journal)
        await anyio.sleep(0.3)
        assert len(child.journal) == before
        child.thaw()
        await child.event("beat", before + 5)


async def test_a_program_ends_with_its_block_and_a_failing_one_is_told() -> None:
    async with Child.program(COMMAND) as child:
        await child.event("ready")
    assert await child.ends(0.1) == -signal.SIGKILL
    async with Child.program([sys.executable, "-c", "raise SystemExit(3)"]) as child:
        began = time.monotonic()
        with pytest.raises(AssertionError, match="ended"):
            await child.event("ready", within=30)
        assert (await child.ends(), time.monotonic() - began < 20) == (3, True)


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
