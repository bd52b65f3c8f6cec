"""B: wildcards. One grammar and one meaning, on every broker."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import anyio

from ... import Message
from .._case import case
from .._ledger import Recorder
from .._target import Target
from .._vectors import ODD_WORDS, PLAIN_WORDS, VECTORS, random_pattern, random_topic, reference
from .._wait import eventually


async def _matches(t: Target, patterns: Iterable[str], topics: Iterable[str]) -> dict[str, set[str]]:
    """Which of the topics reached the handler of each pattern, by the broker."""
    bus = t.bus()
    recorders = {pattern: t.recorder(pattern) for pattern in patterns}
    for pattern, seen in recorders.items():
        await bus.subscribe(t.topic(pattern), seen)
    end = t.recorder("the last message")
    await bus.subscribe(t.topic("#"), end)
    sent = set(topics)
    for topic in sent:
        await t.ledger.publish(bus, t.topic(topic), topic)
    await end.reaches(len(sent), t.patience)
    # Each has a feed of its own.
    due = {pattern: sum(reference(pattern, topic) for topic in sent) for pattern in patterns}
    await eventually(
        lambda: all(len(seen.seen) >= due[pattern] for pattern, seen in recorders.items()),
        lambda: f"too few came: {[(pattern, seen.data) for pattern, seen in recorders.items()]}",
        t.patience,
    )
    await _rest(t, recorders.values())
    for pattern, seen in recorders.items():
        assert len(seen.data) == len(set(seen.data)), f"{pattern} got a message twice: {sorted(seen.data)}"
    return {pattern: set(seen.data) for pattern, seen in recorders.items()}


async def _rest(t: Target, recorders: Iterable[Recorder]) -> None:
    every = list(recorders)
    while True:
        before = sum(len(seen.seen) for seen in every)
        await anyio.sleep(max(0.3, t.capabilities.new_topic_lag * 2))
        if sum(len(seen.seen) for seen in every) == before:
            return


@case("B1")
async def B1_table_of_patterns(t: Target) -> None:
    """More than 60 pairs of pattern and topic match as in AMQP, several # and any position included."""
    topics = {topic for _, yes, no in VECTORS for topic in (*yes, *no)}
    got = await _matches(t, [pattern for pattern, _, _ in VECTORS], topics)
    for pattern, yes, no in VECTORS:
        missed, wrong = set(yes) - got[pattern], set(no) & got[pattern]
        assert not missed, f"{pattern} does not match {sorted(missed)}"
        assert not wrong, f"{pattern} matches {sorted(wrong)}"
    assert sum(len(yes) + len(no) for _, yes, no in VECTORS) >= 60


@case("B2")
async def B2_hash_matches_no_word_too(t: Target) -> None:
    """`a.#` matches `a`, and `logs.#.error` matches `logs.error`, and both nothing beside it."""
    topics = ["a", "a.b", "a.b.c", "ab"]
    topics += ["logs.error", "logs.a.error", "logs.a.b.error", "logs.xerror", "logs.error.x", "xlogs.error"]
    got = await _matches(t, ["a.#", "logs.#.error"], topics)
    assert got["a.#"] == {"a", "a.b", "a.b.c"}, f"a.# matched {sorted(got['a.#'])}"
    assert got["logs.#.error"] == {"logs.error", "logs.a.error", "logs.a.b.error"}, (
        f"logs.#.error matched {sorted(got['logs.#.error'])}"
    )


@case("B3")
async def B3_overlaps_call_once(t: Target) -> None:
    """A pattern that matches in several ways calls its handler once; two overlapping subscriptions once each."""
    bus, one, two, three = t.bus(), t.recorder("#.#"), t.recorder("a.*"), t.recorder("a.#")
    for pattern, seen in (("#.x.#", one), ("a.*", two), ("a.#", three)):
        await bus.subscribe(t.topic(pattern), seen)
    await t.ledger.publish(bus, t.topic("a.x"), 1)
    await t.ledger.publish(bus, t.topic("x.x.x"), 2)
    await one.reaches(2, t.patience)
    await two.reaches(1, t.patience)
    await three.reaches(1, t.patience)
    await anyio.sleep(t.watch)
    assert (sorted(one.data), two.data, three.data) == ([1, 2], [1], [1]), (
        f"calls: {one.data}, {two.data}, {three.data}"
    )


@case("B4")
async def B4_very_first_message_of_a_new_topic(t: Target) -> None:
    """A topic first used after a wildcard subscription: its very first message arrives, none is lost."""
    consumer, publisher, seen = t.bus(), t.bus(), t.recorder()
    await consumer.subscribe(t.topic("agents.#"), seen)
    shared = t.recorder("the group")
    if t.capabilities.groups:
        await consumer.subscribe(t.topic("agents.#"), shared, group="workers")
    for number in range(50):
        await t.ledger.publish(publisher, t.topic("agents", f"new{number}"), number)
    await seen.reaches(50, t.patience)
    t.ledger.check(seen)
    if t.capabilities.groups:
        await shared.reaches(50, t.patience)
        t.ledger.check(shared)


async def _other_member(t: Target, pattern: str) -> Callable[[], list[Any]]:
    """A member of the group, in another process where there are others; returns what tells what it got."""
    if t.capabilities.single_process:
        other = t.recorder("the other member", "workers")
        await t.bus().subscribe(pattern, other, group="workers")
        return lambda: other.data
    child = await t.child(pattern, group="workers")
    return lambda: child.data


@case("B5", needs="groups")
async def B5_wildcard_groups(t: Target) -> None:
    """A pattern shared by a group over two members: each match once; what does not match does not stay pending."""
    pattern, bus = t.topic("jobs.*.run"), t.bus()
    here = t.recorder("this member", "workers")
    await bus.subscribe(pattern, here, group="workers")
    there = await _other_member(t, pattern)
    for number in range(60):
        await t.ledger.publish(bus, t.topic("jobs", str(number % 6), "run" if number % 3 else "skip"), number)
    expected = [number for number in range(60) if number % 3]
    await eventually(
        lambda: len(here.data) + len(there()) >= 40, lambda: f"{len(here.data)} + {len(there())} of 40 came", t.patience
    )
    assert sorted([*here.data, *there()]) == expected, f"the group got {sorted([*here.data, *there()])}"
    later = t.recorder("a later member", "workers")
    await t.bus().subscribe(pattern, later, group="workers")
    await later.stays_at(0, t.watch)


@case("B6")
async def B6_odd_characters_are_literal(t: Target) -> None:
    """Topics with glob, regex, subject or SQL characters are literal or refused at publish; never match wrongly."""
    bus, seen = t.bus(), {word: t.recorder(word) for word in ODD_WORDS}
    usable = []
    for word, recorder in seen.items():
        try:
            await bus.subscribe(t.topic("odd", word), recorder)
            usable.append(word)
        except ValueError:
            continue
    everything = t.recorder("odd.*")
    await bus.subscribe(t.topic("odd.*"), everything)
    accepted = []
    for word in (*ODD_WORDS, *PLAIN_WORDS):
        try:
            await t.ledger.publish(bus, t.topic("odd", word), word)
            accepted.append(word)
        except ValueError:
            assert word not in PLAIN_WORDS, f"the plain word {word!r} was refused"
    await everything.reaches(len(accepted), t.patience)
    for word in set(usable) & set(accepted):
        await seen[word].reaches(1, t.patience)
    await _rest(t, [*seen.values(), everything])
    assert sorted(everything.data) == sorted(accepted), f"odd.* got {sorted(everything.data)}"
    for word in usable:
        expected = [word] if word in accepted else []
        assert seen[word].data == expected, f"the subscriber of {word!r} got {seen[word].data}"


@case("B7")
async def B7_case_matters(t: Target) -> None:
    """Topics and patterns are case-sensitive."""
    got = await _matches(
        t, ["Agents.*", "agents.*", "AGENTS.X", "#.x"], ["Agents.x", "agents.x", "AGENTS.X", "agents.X"]
    )
    assert got["Agents.*"] == {"Agents.x"}, f"Agents.* matched {sorted(got['Agents.*'])}"
    assert got["agents.*"] == {"agents.x", "agents.X"}, f"agents.* matched {sorted(got['agents.*'])}"
    assert got["AGENTS.X"] == {"AGENTS.X"}, f"AGENTS.X matched {sorted(got['AGENTS.X'])}"
    assert got["#.x"] == {"Agents.x", "agents.x"}, f"#.x matched {sorted(got['#.x'])}"


@case("B8")
async def B8_malformed_is_a_value_error(t: Target) -> None:
    """Empty words, half wildcards and publishing to a wildcard are a ValueError at once."""
    bus = t.bus()
    both = ("", ".", "a.", ".a", "a..b", "a*", "*a", "a.#b", "a.b#", "**", "##", "a. b", "a\tb", "a\nb", "a\x00b")
    publish = ("*", "#", "a.*", "a.#", "#.a", "a.*.b")
    for topic in (*both, *publish):
        await _refused(f"publish({topic!r})", bus.publish(topic, 1))
    for topic in both:
        await _refused(f"subscribe({topic!r})", bus.subscribe(topic, t.recorder()))


async def _refused(what: str, call: object) -> None:
    try:
        await call  # type: ignore[misc]
    except ValueError as error:
        assert str(error), f"{what} is refused without a word"
    else:
        raise AssertionError(f"{what} was accepted")


@case("B9")
async def B9_hash_sees_no_control_traffic(t: Target) -> None:
    """`#` never sees reply, dead-letter, delay or control topics."""
    bus = t.bus(dead_letter_queue=t.topic("dead"))
    every, dead, tries = t.recorder("#"), t.recorder("the dead letters"), t.recorder("below")

    def fail(message: Message) -> None:
        raise RuntimeError("fails on purpose")

    async def answer(message: Message) -> str:
        return "yes"

    failing = t.recorder("the failing handler", then=fail)
    await bus.subscribe("#", every)
    await bus.subscribe(t.topic("#"), tries)
    await bus.subscribe(t.topic("dead"), dead)
    await bus.subscribe(t.topic("bad"), failing, retries=1, retry_delay=0.05, **t.group())
    await t.answering(bus, t.topic("ask"), answer)
    assert (await bus.request(t.topic("ask"), "really?", timeout=10)).data == "yes"
    await bus.publish(t.topic("bad"), 1)
    if t.capabilities.delay != "none":
        await bus.publish(t.topic("later"), 1, delay=0.2)
    await dead.reaches(1, t.patience)
    expected = sorted(t.topic(word) for word in ("ask", "bad", *(["later"] if t.capabilities.delay != "none" else [])))
    await tries.reaches(len(expected), t.patience)
    # It sees the other cases' messages too, and may be behind.
    await eventually(
        lambda: sum(one.topic.startswith(t.namespace) for one in every.seen) >= len(expected),
        lambda: f"# saw {[one.topic for one in every.seen if one.topic.startswith(t.namespace)]} of {expected}",
        t.patience,
    )
    await anyio.sleep(t.watch + t.capabilities.new_topic_lag)
    for seen in (every, tries):
        topics = sorted(one.topic for one in seen.seen if one.topic.startswith(t.namespace))
        assert topics == expected, f"{seen.name} saw {topics} instead of {expected}"
    inner = [one.topic for one in every.seen if one.topic.startswith("_amb") or one.message.dead is not None]
    assert not inner, f"# saw AMB's own traffic: {sorted(set(inner))[:5]}"


@case("B10")
async def B10_random_patterns(t: Target) -> None:
    """The broker agrees with the definition on 500 random pairs, 16 words deep and 255 characters long."""
    seed = random.SystemRandom().randrange(1 << 32)
    dice = random.Random(seed)
    patterns = {random_pattern(dice, 6) for _ in range(23)} | {
        ".".join(["*"] * 15 + ["#"]),
        "#." + ".".join(["a"] * 15),
    }
    room = t.capabilities.max_topic - len(t.topic("")) - 2
    long = "w" * (room - 30) + ".a"
    topics = {random_topic(dice, 6) for _ in range(17)} | {".".join(["a"] * 15), ".".join(["a"] * 16), long}
    got = await _matches(t, patterns, topics)
    for pattern in patterns:
        right = {topic for topic in topics if reference(pattern, topic)}
        wrong, missed = sorted(got[pattern] - right), sorted(right - got[pattern])
        assert got[pattern] == right, f"{pattern} matched {wrong} wrongly and missed {missed} (seed {seed})"
