"""From logits to next tokens, all rows at once; no row's choice depends on its neighbours.

Axes: R row (one a sampling branch), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from pasta_ray.engine.messages import Sampling


@dataclass(frozen=True)
class SampleRow:
    """How one row is sampled: ``index`` counts the tokens of its branch before the sampled one."""

    sampling: Sampling
    path: str
    index: int
    mask_row: int | None


def uniform(seed: int, path: str, index: int) -> float:
    """A fraction in [0, 1) of 53 bits, a function of its arguments alone: a replay draws the same."""
    digest = blake2b(f"{seed}|{path}|{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def sample(logits_RV: torch.Tensor, rows: Sequence[SampleRow], masks: torch.Tensor | None) -> list[int]:
    """One token for each row. ``masks`` bool [num_masks, V]: True is allowed."""
    logits_RV = _masked(logits_RV, rows, masks)
    tokens_R = logits_RV.argmax(dim=-1)
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > 0.0]
    if drawn:
        index_R = torch.tensor(drawn, device=logits_RV.device)
        tokens_R[index_R] = _draw(logits_RV[index_R], [rows[i] for i in drawn])
    return [int(token) for token in tokens_R.tolist()]


def _masked(logits_RV: torch.Tensor, rows: Sequence[SampleRow], masks: torch.Tensor | None) -> torch.Tensor:
    constrained = [(i, row.mask_row) for i, row in enumerate(rows) if row.mask_row is not None]
    if not constrained:
        return logits_RV
    assert masks is not None, "a branch has a constraint, but the engine has no masks"
    which, mask_rows = torch.tensor(constrained, device=logits_RV.device).unbind(1)
    forbidden_RV = ~masks.index_select(0, mask_rows)
    if len(constrained) == len(rows):
        return logits_RV.masked_fill(forbidden_RV, float("-inf"))
    return logits_RV.index_copy(0, which, logits_RV[which].masked_fill(forbidden_RV, float("-inf")))


def _draw(logits_RV: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """Temperature and nucleus (top-p) sampling, Holtzman et al. 2020 (arXiv 1904.09751): the fewest tokens whose
    probability reaches ``top_p``, drawn by inverting their cumulative sum."""
    device = logits_RV.device
    temperature_R1 = torch.tensor([[row.sampling.temperature] for row in rows], device=device)
    top_p_R1 = torch.tensor([[row.sampling.top_p] for row in rows], dtype=torch.float64, device=device)
    draws = [[uniform(row.sampling.seed, row.path, row.index)] for row in rows]
    u_R1 = torch.tensor(draws, dtype=torch.float64, device=device)
    probs_RV = torch.softmax(logits_RV.float() / temperature_R1, dim=-1)
    sorted_RV, ids_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
    cumulative_RV = sorted_RV.double().cumsum(dim=-1)
    num_kept_R1 = (cumulative_RV < top_p_R1).sum(dim=-1, keepdim=True) + 1
    last_R1 = torch.minimum(num_kept_R1, (sorted_RV > 0).sum(dim=-1, keepdim=True)) - 1
    kept_R1 = cumulative_RV.gather(1, last_R1)
    rank_R1 = torch.searchsorted(cumulative_RV, u_R1 * kept_R1, right=True)
    return ids_RV.gather(1, torch.minimum(rank_R1, last_R1)).squeeze(1)
