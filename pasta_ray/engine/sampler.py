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
    tokens = _likeliest(logits_RV)
    # What is likeliest of all is likeliest of what is allowed, if it is allowed: most greedy rows need no mask.
    masked = [
        i for i, row in enumerate(rows) if row.sampling.temperature > 0.0 or not _allows(masks, row.mask_row, tokens[i])
    ]
    if masked:
        picked_RV = _masked(logits_RV[masked], [rows[i].mask_row for i in masked], masks)
        for i, token in zip(masked, _likeliest(picked_RV), strict=True):
            tokens[i] = token
        drawn = [(k, i) for k, i in enumerate(masked) if rows[i].sampling.temperature > 0.0]
        if drawn:
            new_tokens = _draw(picked_RV[[k for k, _ in drawn]], [rows[i] for _, i in drawn]).tolist()
            for (_, i), token in zip(drawn, new_tokens, strict=True):
                tokens[i] = token
    return tokens


def _likeliest(logits_RV: torch.Tensor) -> list[int]:
    """Numpy's argmax on CPU, many times faster than torch's."""
    on_cpu = logits_RV.device.type == "cpu"
    tokens: list[int] = (logits_RV.numpy().argmax(-1) if on_cpu else logits_RV.argmax(-1)).tolist()
    return tokens


def _allows(masks: torch.Tensor | None, mask_row: int | None, token: int) -> bool:
    if mask_row is None:
        return True
    assert masks is not None, "a branch has a constraint, but the engine has no masks"
    return bool(masks[mask_row, token])


def _masked(logits_RV: torch.Tensor, mask_rows: Sequence[int | None], masks: torch.Tensor | None) -> torch.Tensor:
    constrained = [i for i, mask_row in enumerate(mask_rows) if mask_row is not None]
    if not constrained:
        return logits_RV
    assert masks is not None, "a branch has a constraint, but the engine has no masks"
    allowed_RV = masks[[mask_row for mask_row in mask_rows if mask_row is not None]].to(logits_RV.device)
    logits_RV[constrained] = torch.where(allowed_RV, logits_RV[constrained], float("-inf"))
    return logits_RV


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
