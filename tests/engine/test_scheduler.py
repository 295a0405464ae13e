"""Who is fed in a step: short runs do not wait for a long prompt, nor does the long prompt wait for them."""

from pathlib import Path

import pytest

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.messages import Sampling
from tests.engine.conftest import prompt

CHUNK = 64


@pytest.fixture(scope="module")
def engine(model_dir: Path) -> Engine:
    return Engine(EngineConfig(model=str(model_dir), prefill_chunk=CHUNK, prefix_cache_bytes=0))


def test_short_runs_do_not_wait_for_a_long_prompt(engine: Engine) -> None:
    """Guards latency: beside a prompt of 2,000 tokens every running branch gets a token a step, and a fork of 20
    forced tokens is fed in the step after it."""
    running = [engine.open(prompt(seed, 5), sampling=Sampling()) for seed in range(3)]
    engine.step()
    long = engine.open(prompt(9, 2000), sampling=Sampling())
    for _ in range(4):
        assert [output.branch for output in engine.step()] == running
    fed = long.num_fed
    assert fed == 4 * CHUNK
    child = engine.fork(running[0], prompt(5, 20), path="0.0", sampling=Sampling())
    assert [output.branch for output in engine.step()] == [running[0], child, *running[1:]]
    assert long.num_fed == fed + CHUNK - 20
    for branch in (*running, long):
        engine.free(branch)


def test_short_runs_do_not_starve_a_long_prompt(engine: Engine) -> None:
    """Guards the long prompt: with more short ones arriving than a step can take, it still gets half of each chunk."""
    long = engine.open(prompt(9, 1000))
    shorts = [engine.open(prompt(seed, 20)) for seed in range(40)]
    for step in range(1, 11):
        engine.step()
        assert long.num_fed >= step * CHUNK // 2
    assert [branch.num_fed for branch in shorts[:11]] == [20] * 10 + [0], "one a step, in order of arrival"
    for branch in (long, *shorts):
        engine.free(branch)


def test_a_long_prompt_that_comes_last_has_its_half_too(engine: Engine) -> None:
    """Guards the half against older requests: forks of theirs that go first must not take it up."""
    shorts = [engine.open(prompt(seed, 30)) for seed in range(3)]
    long = engine.open(prompt(9, 1000))
    engine.step()
    assert (long.num_fed, [branch.num_fed for branch in shorts]) == (CHUNK // 2 + 2, [30, 0, 0])
    for branch in (long, *shorts):
        engine.free(branch)


def test_a_chunk_of_one_still_moves(model_dir: Path) -> None:
    """Guards the smallest budget: every run ends, whatever the others are."""
    engine = Engine(EngineConfig(model=str(model_dir), prefill_chunk=1, prefix_cache_bytes=0))
    branches = [engine.open(prompt(seed, 4)) for seed in range(3)]
    num_steps = 0
    while engine.has_work:
        engine.step()
        num_steps += 1
    assert num_steps <= 12
    for branch in branches:
        assert branch.num_pending == 0
        engine.free(branch)
