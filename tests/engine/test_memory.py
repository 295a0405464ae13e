"""Bounded KV: requests wait their turn and are preempted, and give what they give with all the room in the world."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.messages import Sampling
from pasta_ray.errors import InputError
from tests.engine.conftest import decode, prompt

SLOT_BYTES = 3 * 2 * 2 * 8 * 4  # layers, keys and values, KV heads, head dimension, float32

MakeEngine = Callable[[int | None], Engine]


@pytest.fixture(scope="module")
def make_engine(model_dir: Path) -> Iterator[MakeEngine]:
    """Engines by the slots that they have room for; each must be left empty."""
    made: list[Engine] = []

    def make(num_slots: int | None) -> Engine:
        max_kv_bytes = None if num_slots is None else num_slots * SLOT_BYTES
        made.append(
            Engine(
                EngineConfig(model=str(model_dir), prefill_chunk=16, max_kv_bytes=max_kv_bytes, prefix_cache_bytes=0)
            )
        )
        return made[-1]

    yield make
    assert all((engine.num_slots, engine.kv_bytes, engine.num_waiting) == (0, 0, 0) for engine in made)


def preempt(engine: Engine, branch: Branch) -> None:
    """Take the request's KV away, as the pool does to the youngest."""
    engine._requests[branch.slab].preempt()


def test_kv_bytes_are_the_models(make_engine: MakeEngine) -> None:
    """Guards the bound itself: what is counted is what the tensors hold."""
    engine = make_engine(None)
    branch = engine.open(prompt(1, 5))
    assert (engine.kv_bytes, engine.num_waiting) == (0, 1)
    engine.step()
    slab = branch.slab
    assert engine.kv_bytes == sum(tensor.nbytes for tensor in (*slab.keys, *slab.values)) == 64 * SLOT_BYTES
    assert slab.shape.bytes_per_slot == SLOT_BYTES
    engine.free(branch)


def test_crowded_requests_give_what_they_give_alone(make_engine: MakeEngine) -> None:
    """Guards preemption: requests that do not fit together take turns, within the bound at every step, and each gives
    the tokens that it gives with room for all."""
    prompts = [prompt(seed, 10 + 7 * seed) for seed in range(6)]
    roomy, crowded = make_engine(None), make_engine(150)
    expected = decode(roomy, [roomy.open(ids, sampling=Sampling()) for ids in prompts], 60)
    branches = [crowded.open(ids, sampling=Sampling()) for ids in prompts]
    sampled: dict[Branch, list[int]] = {branch: [] for branch in branches}
    finished: list[Branch] = []
    while len(finished) < len(branches):
        for output in crowded.step():
            (token,) = output.tokens
            sampled[output.branch].append(token)
        assert crowded.kv_bytes <= 150 * SLOT_BYTES
        for branch in branches:
            if branch not in finished and len(sampled[branch]) >= 60:
                finished.append(branch)
                crowded.free(branch)
    assert [tokens[:60] for tokens in sampled.values()] == expected
    assert finished == branches, "the oldest ends first"
    assert crowded.num_preemptions > 0


def test_nobody_overtakes_the_head_of_the_line(make_engine: MakeEngine) -> None:
    """Guards against starvation: a small request that would fit waits behind a large one that does not yet."""
    engine = make_engine(200)
    first = engine.open(prompt(1, 90), sampling=Sampling())
    large = engine.open(prompt(2, 120), sampling=Sampling())
    small = engine.open(prompt(3, 2), sampling=Sampling())
    for _ in range(6):
        engine.step()
    assert [branch.slab.resident for branch in (first, large, small)] == [True, False, False]
    assert engine.num_waiting == 2
    engine.free(first)
    engine.step()
    assert [branch.slab.resident for branch in (large, small)] == [True, True]
    engine.free(large)
    engine.free(small)


def test_what_can_never_fit_is_refused(make_engine: MakeEngine) -> None:
    """Guards against waiting for ever: the error says what is needed and what is allowed, and others go on."""
    engine = make_engine(20)
    with pytest.raises(InputError, match=r"prompt needs 8064 bytes of KV for 21 tokens; allowed: .* 7680, .* 20 tok"):
        engine.open(prompt(1, 21))
    branch = engine.open(prompt(1, 18))
    with pytest.raises(InputError, match="these tokens needs 8064 bytes"):
        engine.feed(branch, [1, 2, 3])
    with pytest.raises(InputError, match="this fork needs 8064 bytes"):
        engine.fork(branch, [1, 2, 3], path="0.0")
    engine.free(branch)
    greedy = engine.open(prompt(1, 18), sampling=Sampling())
    other = engine.open(prompt(2, 3), sampling=Sampling())
    while len(greedy.tokens) < 21:
        engine.step()
    with pytest.raises(InputError, match="a request needs 8064 bytes"):
        engine.step()
    engine.free(greedy)
    assert [output.branch for output in engine.step()] == [other]
    engine.free(other)


def tree(engine: Engine, disturb: Callable[[Branch], None]) -> list[torch.Tensor]:
    """A request with forks, joins, a hold and a closed branch, ``disturb`` called between any two steps; the logits of
    every branch, in the order of their tokens."""
    logits: dict[str, list[torch.Tensor]] = {}

    def run() -> None:
        while engine.has_work:
            for output in engine.step():
                if output.logits is not None:
                    logits.setdefault(output.branch.path, []).append(output.logits)
            disturb(main)

    main = engine.open(prompt(1, 21), keep_logits=True)
    run()
    engine.feed(main, [4])
    bodies = [engine.fork(main, [5 + i], path=f"0.{i}", gap=10, keep_logits=True) for i in range(3)]
    engine.feed(main, [6, 7])
    run()
    for number, body in enumerate(bodies):
        engine.feed(body, prompt(number, 20 + number))
    engine.feed(main, prompt(9, 18))
    run()
    engine.feed(bodies[2], [3, 3, 3])
    engine.close(bodies[2])
    engine.feed(main, [8])
    engine.hold(main)
    run()
    engine.settle(bodies[1])
    engine.join(main, bodies[1:])
    engine.release(main)
    run()
    engine.feed(main, prompt(10, 17))
    grandchild = engine.fork(main, [9, 10], path="0.3", keep_logits=True)
    run()
    engine.join(main, [grandchild, bodies[0]])
    engine.feed(main, [11, 12])
    run()
    engine.free(main)
    return [torch.cat(logits[path]) for path in sorted(logits)]


@pytest.mark.parametrize("again_after", [None, 3])
def test_feeding_again_sees_what_was_seen_at_first(make_engine: MakeEngine, again_after: int | None) -> None:
    """Guards the past: after a preemption at any step, and one more while it is being made good, each token is fed
    again without what joins brought later, gives its logits exactly once, and what follows is as without."""
    engine = make_engine(None)
    num_steps = 0

    def count(_: Branch) -> None:
        nonlocal num_steps
        num_steps += 1

    expected = tree(engine, count)
    assert num_steps > 10
    for at in range(num_steps):
        steps = iter(range(1000))

        def disturb(main: Branch, at: int = at, steps: Iterator[int] = steps) -> None:
            step = next(steps)
            if step == at or (again_after and step == at + again_after):
                preempt(engine, main)

        got = tree(engine, disturb)
        assert next(steps) > num_steps
        assert [part.shape for part in got] == [part.shape for part in expected]
        torch.testing.assert_close(torch.cat(got), torch.cat(expected), atol=1e-4, rtol=0)


def test_closing_and_holding_a_preempted_branch(make_engine: MakeEngine) -> None:
    """Guards against loss on close and against feeding on hold: what was fed comes back, what never was does not."""
    engine = make_engine(None)
    main = engine.open(prompt(1, 8), sampling=Sampling())
    engine.step()
    child = engine.fork(main, [5], path="0.0", sampling=Sampling())
    engine.step()
    assert (len(child.tokens), child.num_fed) == (2, 1)
    engine.hold(main)
    preempt(engine, main)
    engine.close(child)
    assert child.tokens == [5]
    assert engine.step() == []
    assert (main.num_fed, child.num_fed) == (9, 1)
    assert not engine.has_work
    engine.release(main)
    assert [output.branch for output in engine.step()] == [main]
    engine.free(main)


def test_nothing_is_sampled_twice(make_engine: MakeEngine) -> None:
    """Guards against a second token behind one that has already had its turn: a branch that was settled when its last
    token was fed samples nothing when that token is fed again."""
    engine = make_engine(None)
    main = engine.open(prompt(1, 8), sampling=Sampling())
    engine.step()
    engine.settle(main)
    engine.step()
    main.settled = False
    preempt(engine, main)
    assert engine.step() == []
    assert (main.num_fed, len(main.tokens)) == (9, 9)
    engine.free(main)
