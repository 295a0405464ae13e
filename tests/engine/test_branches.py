"""Fork, join, hold, settle, close: visibility and positions, against transformers with a hand-made mask."""

import torch
from transformers import PreTrainedModel

from pasta_ray.engine import Engine
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.messages import Sampling
from tests.engine.conftest import prompt


def masked_logits(
    reference: PreTrainedModel, ids: list[int], positions: list[int], visible: list[list[int]]
) -> torch.Tensor:
    """One forward pass in which token i sees exactly the tokens ``visible[i]``."""
    mask = torch.full((1, 1, len(ids), len(ids)), torch.finfo(torch.float32).min)
    for token, seen in enumerate(visible):
        mask[0, 0, token, seen] = 0.0
    with torch.no_grad():
        out = reference(torch.tensor([ids]), attention_mask=mask, position_ids=torch.tensor([positions]))
    return out.logits[0]


def run(engine: Engine) -> dict[Branch, torch.Tensor]:
    """Step until nothing waits; the logits of each branch with ``keep_logits``."""
    logits: dict[Branch, list[torch.Tensor]] = {}
    while engine.has_work:
        for output in engine.step():
            if output.logits is not None:
                logits.setdefault(output.branch, []).append(output.logits)
    return {branch: torch.cat(parts) for branch, parts in logits.items()}


def test_fork_and_join_by_hand(engine: Engine, reference: PreTrainedModel) -> None:
    """Guards the layout's two halves: who sees whom, and where positions go after a gap of 10."""
    main = engine.open([1, 2, 3], keep_logits=True)
    first = run(engine)
    engine.feed(main, [4])
    body = engine.fork(main, [5], path="0.0", gap=10, keep_logits=True)
    engine.feed(main, [6])
    engine.feed(body, [7])
    second = run(engine)
    engine.join(main, [body])
    engine.feed(main, [8])
    third = run(engine)
    engine.free(main)
    # order: 1 2 3 4 | body 5 7 | 6 8
    ids, positions = [1, 2, 3, 4, 5, 7, 6, 8], [0, 1, 2, 3, 4, 5, 14, 15]
    visible = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6], [*range(8)]]
    got = torch.cat((first[main], second[main][:1], second[body], second[main][1:], third[main]))
    torch.testing.assert_close(got, masked_logits(reference, ids, positions, visible), atol=1e-4, rtol=0)


def test_sync_joins_children_fed_in_the_same_step(engine: Engine, reference: PreTrainedModel) -> None:
    """Guards the join of pending tokens: sync and the children's last tokens share one forward pass, and the sync sees
    them."""
    main = engine.open([1, 2], keep_logits=True)
    run(engine)
    bodies = [engine.fork(main, [3 + i], path=f"0.{i}", gap=10, keep_logits=True) for i in range(2)]
    run(engine)
    engine.feed(main, [9])
    for body in bodies:
        engine.feed(body, [7])
    engine.join(main, bodies)
    outputs = engine.step()
    assert {output.branch for output in outputs} == {main, *bodies}
    assert not engine.has_work
    sync = next(output.logits for output in outputs if output.branch is main)
    engine.free(main)
    ids, positions = [1, 2, 3, 7, 4, 7, 9], [0, 1, 2, 3, 12, 13, 22]
    visible = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [*range(7)]]
    expected = masked_logits(reference, ids, positions, visible)[-1:]
    torch.testing.assert_close(sync, expected, atol=1e-4, rtol=0)


def test_children_of_an_unfed_prompt_wait_for_it(engine: Engine, reference: PreTrainedModel) -> None:
    """Guards the scheduler: a fork of a prompt that is prefilled in chunks must not attend to empty slots."""
    ids = prompt(1, 40)
    main = engine.open(ids, keep_logits=True)
    child = engine.fork(main, [5, 6], path="0.0", keep_logits=True)
    outputs = engine.step()
    assert [output.branch for output in outputs] == [main]
    logits = run(engine)[child]
    engine.free(main)
    with torch.no_grad():
        expected = reference(torch.tensor([[*ids, 5, 6]])).logits[0, -2:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_hold_keeps_pending_tokens_and_what_depends_on_them(engine: Engine) -> None:
    """Guards hold: neither the held token nor a child that sees it is fed before release."""
    main = engine.open([1, 2, 3], sampling=Sampling())
    engine.step()
    engine.hold(main)
    child = engine.fork(main, [4], path="0.0", sampling=Sampling())
    assert engine.step() == []
    assert not engine.has_work
    engine.release(main)
    assert [output.branch for output in engine.step()] == [main, child]
    engine.free(main)


def test_settled_branch_feeds_but_samples_nothing(engine: Engine) -> None:
    """Guards settle: the last token's KV must reach the cache, and no token may follow it."""
    main = engine.open([1, 2, 3], sampling=Sampling())
    engine.step()
    assert main.num_pending == 1
    engine.settle(main)
    assert engine.step() == []
    assert (main.num_pending, len(main.tokens)) == (0, 4)
    assert not engine.has_work
    engine.free(main)


def test_closed_branch_drops_pending_for_everybody(engine: Engine, reference: PreTrainedModel) -> None:
    """Guards close: a dropped token was never computed, so a branch that joins later must not see its empty slot."""
    main = engine.open([1, 2], keep_logits=True)
    run(engine)
    body = engine.fork(main, [3], path="0.0", gap=10)
    run(engine)
    engine.feed(body, [4])
    engine.close(body)
    engine.join(main, [body])
    engine.feed(main, [5])
    logits = run(engine)[main]
    assert engine.num_branches == 1
    engine.free(main)
    visible = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    expected = masked_logits(reference, [1, 2, 3, 5], [0, 1, 2, 12], visible)[-1:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_fork_copies_the_row_not_the_cache(engine: Engine) -> None:
    """Guards the cost of a fork: one slot a forced token, and the parent's later tokens stay hidden."""
    main = engine.open([1, 2, 3])
    child = engine.fork(main, [4], path="0.0")
    engine.feed(main, [5])
    assert engine.num_slots == 5
    assert child.visible[:5].tolist() == [True, True, True, True, False]
    assert main.visible[:5].tolist() == [True, True, True, False, True]
    assert (child.positions, main.positions) == ([3], [0, 1, 2, 3])
    engine.free(main)
