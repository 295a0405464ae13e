"""Where a body goes, decided on figures alone."""

import pytest

from pasta_ray.actors.costs import TransferCost
from pasta_ray.actors.placement import Placement, View
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.messages import BodyPlan

STEEP = StepCurve([(1, 0.02), (2, 0.04), (4, 0.08), (16, 0.32)])  # a row costs as much as the first
FLAT = StepCurve([(1, 0.02), (16, 0.024), (256, 0.4)])
TOKEN_BYTES = 50_000


def plan(tokens: int = 100, num_prompt: int = 200, num_behind: int = 50) -> BodyPlan:
    return BodyPlan("r", "0.1", "", tokens, num_prompt, num_behind)


def choose(policy: str, home: View, *peers: View, transfer: TransferCost | None = None, **body: int) -> str | None:
    placement = Placement(policy, TOKEN_BYTES)  # type: ignore[arg-type]
    return placement.choose(plan(**body), home, peers, transfer or TransferCost(0.005, 5e8))


def test_a_cheap_row_stays() -> None:
    """Guards against moving KV to save nothing: where a row more costs little, home is best, idle as others are."""
    assert choose("auto", View("r0", FLAT, 3), View("r1", FLAT, 0)) is None


def test_a_dear_row_leaves_for_whoever_is_idle() -> None:
    busy, idle = View("r1", STEEP, 6), View("r2", STEEP, 0)
    assert choose("auto", View("r0", STEEP, 3), busy, idle) == "r2"
    assert choose("auto", View("r0", STEEP, 3), busy) is None


def test_a_short_body_is_not_worth_the_journey() -> None:
    home, idle = View("r0", STEEP, 1), View("r1", STEEP, 0)
    assert choose("auto", home, idle, tokens=200, num_behind=2000) == "r1"
    assert choose("auto", home, idle, tokens=10, num_behind=2000) is None


def test_who_has_the_prompt_is_nearer() -> None:
    home, slow = View("r0", STEEP, 3), TransferCost(0.005, 1e7)
    without, with_prompt = View("r1", STEEP, 0), View("r2", STEEP, 0, has_prompt=True)
    assert choose("auto", home, without, with_prompt, transfer=slow, num_behind=0) == "r2"


def test_a_full_replica_is_slower_than_its_steps() -> None:
    """Guards the estimate on a replica whose rows take turns: twice the rows that are worthwhile, twice the time."""
    most = STEEP.worthwhile_rows()
    placement = Placement("auto", TOKEN_BYTES)
    free = TransferCost(0.0, 1e18)
    prompt = {"has_prompt": True}
    once = placement.away_s(plan(), View("r1", STEEP, most - 1, **prompt), free)
    assert placement.away_s(plan(), View("r1", STEEP, 2 * most - 1, **prompt), free) == pytest.approx(2 * once)


def test_policies() -> None:
    home, peer = View("r0", FLAT, 0), View("r1", STEEP, 9)
    assert choose("local", View("r0", STEEP, 9), View("r1", FLAT, 0)) is None
    assert choose("remote", home, peer) == "r1"
    assert choose("remote", home) is None


def test_transfers_correct_what_they_were_expected_to_cost() -> None:
    """Guards the cost model: it comes to what transfers take, small and large."""
    cost = TransferCost()
    for _ in range(30):
        cost.observe(1000, 0.002)
        cost.observe(50_000_000, 0.002 + 0.05)
    assert cost.seconds(1000) == pytest.approx(0.002, rel=0.1)
    assert cost.seconds(50_000_000) == pytest.approx(0.052, rel=0.1)
