"""The six lanes: order, no starvation, and the same contents as a plain model."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from amb_core.lanes import LANES, PATIENCE, Lanes


def drained(lanes: Lanes[str]) -> list[str]:
    return [lanes.pop() for _ in range(len(lanes))]


def test_one_lane_is_first_in_first_out() -> None:
    lanes: Lanes[int] = Lanes()
    for number in range(100):
        lanes.push(3, number)
    assert [lanes.pop() for _ in range(100)] == list(range(100))


def test_a_higher_priority_overtakes_whatever_waits() -> None:
    lanes: Lanes[str] = Lanes()
    for priority in (5, 3, 1, 4, 2, 0):
        lanes.push(priority, f"p{priority}")
    assert drained(lanes) == ["p0", "p1", "p2", "p3", "p4", "p5"]


def test_what_came_back_goes_first_in_its_lane_only() -> None:
    lanes: Lanes[str] = Lanes()
    lanes.push(3, "second")
    lanes.push(0, "critical")
    lanes.push_front(3, "first")
    assert drained(lanes) == ["critical", "first", "second"]


def test_an_empty_queue_says_so() -> None:
    lanes: Lanes[str] = Lanes()
    assert not lanes and len(lanes) == 0
    with pytest.raises(IndexError):
        lanes.pop()
    lanes.push(5, "x")
    assert lanes and len(lanes) == 1
    assert lanes.pop() == "x"
    assert not lanes
    with pytest.raises(IndexError):
        lanes.pop()


@pytest.mark.parametrize("priority", [6, 100, -1])
def test_a_priority_outside_the_lanes_is_refused(priority: int) -> None:
    lanes: Lanes[str] = Lanes()
    with pytest.raises((IndexError, ValueError)):
        lanes.push(priority, "x")
    assert not lanes


def test_the_lowest_lane_gets_one_after_fifteen_overtakings() -> None:
    lanes: Lanes[str] = Lanes()
    for number in range(40):
        lanes.push(0, f"critical {number}")
    lanes.push(5, "low 0")
    lanes.push(5, "low 1")
    order = drained(lanes)
    assert order.index("low 0") == PATIENCE
    assert order.index("low 1") == 2 * PATIENCE + 1


def test_no_lane_starves_under_constant_load_from_above_and_below() -> None:
    lanes: Lanes[int] = Lanes()
    taken: Counter[int] = Counter()
    for priority in range(LANES):
        lanes.push(priority, priority)
    for _ in range(16 * 50):
        priority = lanes.pop()
        taken[priority] += 1
        lanes.push(priority, priority)
    assert taken == {0: 750, 1: 10, 2: 10, 3: 10, 4: 10, 5: 10}


def test_overtaking_is_counted_in_a_row_only() -> None:
    lanes: Lanes[str] = Lanes()
    for _ in range(PATIENCE):
        lanes.push(0, "high")
        lanes.push(5, "low")
        assert lanes.pop() == "high"
        assert lanes.pop() == "low"


def test_iterating_takes_nothing() -> None:
    lanes: Lanes[str] = Lanes()
    lanes.push(4, "b")
    lanes.push(1, "a")
    assert list(lanes) == ["a", "b"]
    assert len(lanes) == 2


@pytest.mark.parametrize("seed", range(20))
def test_whatever_goes_in_comes_out_once_and_in_order_of_its_lane(seed: int) -> None:
    chance = random.Random(seed)
    lanes: Lanes[tuple[int, int]] = Lanes()
    out: list[tuple[int, int]] = []
    pushed = 0
    for _ in range(2000):
        if lanes and chance.random() < 0.45:
            out.append(lanes.pop())
        else:
            lanes.push(priority := chance.randrange(LANES), (priority, pushed))
            pushed += 1
        assert len(lanes) == pushed - len(out)
    while lanes:
        out.append(lanes.pop())
    assert len(set(out)) == pushed
    for priority in range(LANES):
        numbers = [number for lane, number in out if lane == priority]
        assert numbers == sorted(numbers)
