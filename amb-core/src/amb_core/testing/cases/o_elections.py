"""O: elections."""

from __future__ import annotations

import time

import anyio

from .._case import case
from .._target import Target

#: Seconds for which a name is held in these cases.
HELD = 3.0


@case("O1", needs="elections")
async def O1_one_holder(t: Target) -> None:
    """Of many who ask at once exactly one holds a name; tokens grow from holder to holder."""
    name, tokens = t.topic("leader"), list[int]()
    candidates = [await t.bus().elections() for _ in range(3)]
    for number in range(3):
        granted: list[tuple[int, int]] = []

        async def ask(who: int, granted: list[tuple[int, int]] = granted) -> None:
            token = await candidates[who].acquire(name, 30.0)
            if token is not None:
                granted.append((who, token))

        async with anyio.create_task_group() as group:
            for who in range(12):
                group.start_soon(ask, who % 3)
        assert len(granted) == 1, f"{len(granted)} of 12 hold {name!r} at once: {granted}"
        [(holder, token)] = granted
        tokens.append(token)
        assert await candidates[holder].renew(name, token, 30.0), "the holder cannot renew"
        assert await candidates[0].acquire(t.topic(f"other{number}"), 30.0), "one name is in the way of another"
        await candidates[(holder + 1) % 3].release(name, token - 1)
        assert await candidates[0].acquire(name, 30.0) is None, "a stranger's token released it"
        await candidates[holder].release(name, token)
    assert tokens == sorted(set(tokens)), f"tokens do not grow: {tokens}"


@case("O2", needs="elections")
async def O2_held_for_a_while(t: Target) -> None:
    """What is not renewed ends after its time and not before, and can never be renewed again."""
    name = t.topic("leader")
    elections = await t.bus().elections()
    began = time.monotonic()
    first = await elections.acquire(name, HELD)
    assert first is not None, "nobody holds the name, and it cannot be had"
    await anyio.sleep(HELD / 2)
    renewed = time.monotonic()
    assert await elections.renew(name, first, HELD), f"not renewed after {renewed - began:.2f} s of {HELD:g} s"
    second = await elections.acquire(name, 30.0)  # what follows must not run into its end
    while second is None:
        assert time.monotonic() - renewed < HELD + t.patience, "it never ends"
        await anyio.sleep(0.02)
        second = await elections.acquire(name, 30.0)
    assert time.monotonic() - renewed >= HELD, f"it ended {time.monotonic() - renewed:.2f} s after it was renewed"
    assert second > first, f"the later token {second} is not above {first}"
    assert not await elections.renew(name, first, HELD), "what had ended was renewed"
    await elections.release(name, first)
    assert await elections.acquire(name, HELD) is None, "what had ended released its successor"
    assert await elections.renew(name, second, HELD), "the successor was disturbed"
    await elections.release(name, second)
    assert not await elections.renew(name, second, HELD), "what was released was renewed"
    await elections.release(name, second)


@case("O3", needs="elections")
async def O3_a_term_is_its_tokens(t: Target) -> None:
    """A token renews and releases from another connection than won it; what is over is a newcomer's at once."""
    # As long as names may be, with letters that brokers spell otherwise.
    name, small = (t.topic(word + "/a>b" + "ü" * 80) for word in ("Leader", "leader"))
    winner, heir = t.bus(), t.bus()
    token = await (await winner.elections()).acquire(name, 30.0)
    assert token is not None, "nobody holds the name, and it cannot be had"
    await winner.disconnect()
    elections = await heir.elections()
    assert await elections.acquire(name, 30.0) is None, "it ended with the connection that won it"
    assert await elections.acquire(small, 30.0), "names that differ in case are in each other's way"
    assert await elections.renew(name, token, 30.0), "its token does not renew it from another connection"
    assert not await elections.renew(name, token + 1, 30.0), "a token that nobody was given renewed it"
    await elections.release(name, token)
    second = await elections.acquire(name, HELD)
    assert second is not None and second > token, f"after {token} was released: {second}"
    await heir.disconnect()
    await anyio.sleep(1.5 * HELD)
    third = await (await t.bus().elections()).acquire(name, HELD)
    assert third is not None and third > second, f"nobody holds it, and a newcomer gets {third} after {second}"
