"""How many replicas there should be, on figures and a clock of our own."""

import pytest

from pasta_ray.actors.messages import ReplicaStats
from pasta_ray.actors.scaling import Scaler, load
from pasta_ray.engine.messages import Counters

FOUR_PAY = ((1, 0.01), (4, 0.01), (16, 0.04))


@pytest.mark.parametrize(
    ("branches", "counters", "expected"),
    [
        (0, Counters(), 0.0),
        (3, Counters(kv_bytes=100), 0.75),
        (3, Counters(kv_bytes=900), 0.9),
        (8, Counters(), 2.0),
        (1, Counters(num_waiting=1), 1.0),
    ],
)
def test_load_is_branches_or_kv_whichever_is_more(branches: int, counters: Counters, expected: float) -> None:
    stats = ReplicaStats("r0", 9, branches, 0, counters=counters, curve=FOUR_PAY, max_kv_bytes=1000)
    assert load(stats) == expected


def test_a_replica_without_curve_and_bound_has_no_load() -> None:
    assert load(ReplicaStats("r0", 9, 9, 9, counters=Counters(kv_bytes=9))) == 0.0


def sizes(scaler: Scaler, loads: dict[int, float], end: int) -> dict[int, int]:
    """When the number changes and to what, second by second; ``loads`` are the cluster's from then on."""
    num, total, changes = scaler.least, 0.0, {}
    for second in range(end):
        total = loads.get(second, total)
        wanted = scaler.wanted(float(second), [total / num] * num, num)
        if wanted != num:
            num = changes[second] = wanted
    return changes


def test_more_come_once_they_have_been_needed_for_a_while() -> None:
    """Guards against a moment's peak, at 5, and against one replica too many or at a time."""
    scaler = Scaler(1, 8, up_s=10, down_s=1000)
    assert sizes(scaler, {5: 9.0, 6: 0.1, 30: 2.0}, 200) == {40: 3}


def test_fewer_stay_only_after_a_longer_while() -> None:
    """Guards against a pause, at 50, and keeps as many as the busiest moment of the window needed."""
    scaler = Scaler(1, 8, up_s=10, down_s=60)
    assert sizes(scaler, {0: 2.0, 50: 0.0, 90: 2.0, 95: 1.0, 130: 0.0}, 300) == {10: 3, 155: 2, 190: 1}


def test_bounds_hold() -> None:
    assert sizes(Scaler(2, 3, up_s=1, down_s=5), {0: 99.0, 20: 0.0}, 60) == {1: 3, 25: 2}


def test_starting_replicas_are_counted() -> None:
    """Guards against one more each second while the first is still loading its weights."""
    scaler = Scaler(1, 8, up_s=2, down_s=60)
    num = 1
    for second in range(30):
        num = scaler.wanted(float(second), [1.0], num)
    assert num == 2
