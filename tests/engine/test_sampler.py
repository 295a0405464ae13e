"""Sampling: seeds, top-p, masks, and rows that do not depend on their neighbours."""

import pytest
import torch

from pasta_ray.engine import Engine
from pasta_ray.engine.messages import Sampling
from pasta_ray.engine.sampler import NUCLEUS, SampleRow, _nucleus, sample, uniform
from pasta_ray.errors import InputError
from tests.engine.conftest import decode, prompt


def row(index: int = 0, *, mask: int | None = None, **settings: float) -> SampleRow:
    return SampleRow(Sampling(**settings), "0", index, mask)  # type: ignore[arg-type]


def test_uniform_is_a_function_of_its_arguments() -> None:
    """Guards replay after a failure: the same seed, path and index always draw the same, and others differ."""
    assert uniform(1, "0.3", 7) == 0.23906198547097157
    draws = [uniform(seed, path, index) for seed in range(10) for path in ("0", "0.1") for index in range(50)]
    assert len(set(draws)) == len(draws)
    assert 0.45 < sum(draws) / len(draws) < 0.55


def test_seeds(engine: Engine) -> None:
    """Guards reproducibility: one seed gives one answer whoever shares the batch; two seeds give two."""

    def answer(seed: int, *others: int) -> list[int]:
        branches = [
            engine.open(prompt(1, 5), sampling=Sampling(temperature=1.0, seed=seed)),
            *(engine.open(prompt(o, 30), sampling=Sampling(temperature=o % 2 * 1.0, seed=o)) for o in others),
        ]
        return decode(engine, branches, 20)[0]

    alone = answer(1)
    assert answer(1) == alone
    assert answer(1, 2, 3, 4) == alone
    assert answer(2) != alone


def test_top_p_and_temperature_statistically() -> None:
    """Guards the distribution: 4,000 draws follow the nucleus' renormalised probabilities and never leave it."""
    probs = torch.tensor([0.05, 0.4, 0.25, 0.3])
    logits = probs.log().expand(4000, -1)
    for temperature, top_p in ((1.0, 1.0), (1.0, 0.6), (1.0, 0.72), (0.5, 0.9)):
        rows = [row(i, temperature=temperature, top_p=top_p) for i in range(4000)]
        counts = torch.bincount(torch.tensor(sample(logits, rows, None)), minlength=4) / 4000
        scaled = torch.softmax(probs.log() / temperature, 0)
        order = scaled.argsort(descending=True)
        num_kept = int((scaled[order].cumsum(0) < top_p - 1e-6).sum()) + 1
        expected = torch.zeros(4)
        expected[order[:num_kept]] = scaled[order[:num_kept]]
        expected /= expected.sum()
        torch.testing.assert_close(counts, expected, atol=0.03, rtol=0)
        assert not counts[expected == 0].any()


def test_the_nucleus_is_that_of_a_full_sort() -> None:
    """Guards the shortcut through the likeliest tokens: flat and peaked rows, ties at the border, top-p 1."""
    torch.manual_seed(0)
    vocab, top_ps = 4 * NUCLEUS, (0.1, 0.9, 0.95, 1.0)
    for scale in (0.0, 1.0, 3.0, 8.0):
        logits = (torch.randn(len(top_ps), vocab) * scale).round(decimals=0 if scale == 3.0 else 4)
        probs = torch.softmax(logits, dim=-1)
        for row_V, kept_V, top_p in zip(probs, _nucleus(probs, top_ps), top_ps, strict=True):
            values, ids = row_V.sort(descending=True, stable=True)
            num_kept = int((values.double().cumsum(0) - values < top_p).sum())
            assert kept_V.nonzero().flatten().tolist() == sorted(ids[:num_kept][values[:num_kept] > 0].tolist())


def test_extreme_values_draw_a_token() -> None:
    """Guards every request of a replica against one whose numbers overflow: a temperature next to nothing draws what
    is likeliest, and logits that are no numbers draw something."""
    logits = torch.tensor([[1.0, 3.0, 2.0], [-1e30, 1e30, 0.0], [float("nan")] * 3])
    tokens = sample(logits, [row(i, temperature=1e-40, top_p=0.9) for i in range(3)], None)
    assert tokens[:2] == [1, 1]
    assert 0 <= tokens[2] < 3
    with pytest.raises(InputError, match="seed is beyond 64 bits"):
        Sampling(seed=2**63)


def test_masks_hold_for_greedy_and_drawn_rows() -> None:
    """Guards the grammar: a forbidden token is never chosen, however likely, and rows without a mask choose freely."""
    logits = torch.tensor([9.0, 1.0, 0.0]).expand(4, -1)
    masks = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    rows = [row(), row(mask=1), row(mask=2, temperature=1.0), row(mask=0)]
    assert sample(logits, rows, masks) == [0, 1, 2, 0]
    assert sample(logits[:1], [row(mask=2)], masks) == [2]
    assert logits[0].tolist() == [9.0, 1.0, 0.0]


class Alternating:
    """Allows only token 7, then only token 8, and so on."""

    def __init__(self) -> None:
        self.mask_row = 0
        self.seen: list[int] = []

    def advance(self, token: int) -> None:
        self.seen.append(token)
        self.mask_row = 1 - self.mask_row


def test_constraint_is_followed_and_told(engine: Engine) -> None:
    """Guards the protocol: the constraint's row holds for its own branch only, and it hears every sampled token."""
    masks = torch.zeros((2, engine.vocab_size), dtype=torch.bool)
    masks[0, 7] = masks[1, 8] = True
    constraint = Alternating()
    engine.masks = masks
    free, bound = (
        engine.open(prompt(1, 5), sampling=Sampling()),
        engine.open(prompt(1, 5), sampling=Sampling(), constraint=constraint),
    )
    tokens = decode(engine, [free, bound], 4)
    engine.masks = None
    assert tokens[1] == [7, 8, 7, 8] == constraint.seen
    assert tokens[0] != tokens[1]
