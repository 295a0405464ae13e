"""From logits to next tokens, all rows at once; no row's choice depends on its neighbours.

Axes: R row (one a sampling branch), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from pasta_ray.engine.messages import Sampling

MIN_TEMPERATURE = 1e-6  # below it a division overflows, and no draw would differ
NUCLEUS = 256  # tokens among which the nucleus is looked for first: sorting a vocabulary costs many times as much


@dataclass(frozen=True)
class SampleRow:
    """How one row is sampled: ``index`` counts the tokens of its branch before the sampled one."""

    sampling: Sampling
    path: str
    index: int
    mask_row: int | None


@dataclass(frozen=True)
class Scores:
    """The log-probability of a sampled token, and the ids likeliest in its place with theirs, likeliest first."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


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


def score(logits_RV: torch.Tensor, tokens: Sequence[int], num_likeliest: int) -> list[Scores]:
    """Of each row's token, by the logits as they are: before temperature, top-p and mask."""
    logits_RV = logits_RV.float()
    total_R1 = logits_RV.logsumexp(dim=-1, keepdim=True)
    token_R1 = torch.tensor(tokens, device=logits_RV.device)[:, None]
    logprobs = (logits_RV.gather(1, token_R1) - total_R1).squeeze(1).tolist()
    values_RK, ids_RK = logits_RV.topk(min(num_likeliest, logits_RV.shape[-1]))
    likeliest = zip(ids_RK.tolist(), (values_RK - total_R1).tolist(), strict=True)
    return [
        Scores(logprob, tuple(zip(ids, values, strict=True)))
        for logprob, (ids, values) in zip(logprobs, likeliest, strict=True)
    ]


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
    """Temperature and nucleus (top-p) sampling, Holtzman et al. 2020 (arXiv 1904.09751), drawn by inverting the
    cumulative sum in the vocabulary's order: unlike in the order of likelihood, a rounding in one logit moves the
    borders of the others by no more than itself."""
    device = logits_RV.device
    temperatures = [max(row.sampling.temperature, MIN_TEMPERATURE) for row in rows]
    temperature_R1 = torch.tensor(temperatures, device=device)[:, None]
    draws = [[uniform(row.sampling.seed, row.path, row.index)] for row in rows]
    u_R1 = torch.tensor(draws, dtype=torch.float64, device=device)
    logits_RV = logits_RV.float()
    probs_RV = torch.softmax((logits_RV - logits_RV.amax(dim=-1, keepdim=True)) / temperature_R1, dim=-1)
    if any(row.sampling.top_p < 1.0 for row in rows):
        probs_RV = _nucleus(probs_RV, [row.sampling.top_p for row in rows])
    cumulative_RV = probs_RV.double().cumsum(dim=-1)
    total_R1 = cumulative_RV[:, -1:]
    last_R1 = (cumulative_RV < total_R1).sum(dim=-1, keepdim=True)
    drawn_R1 = torch.searchsorted(cumulative_RV, u_R1 * total_R1, right=True)
    return torch.minimum(drawn_R1, last_R1).squeeze(1)


def _nucleus(probs_RV: torch.Tensor, top_ps: Sequence[float]) -> torch.Tensor:
    """Zero but for the fewest tokens whose probability reaches ``top_ps``; the first of equal ones."""
    top_p_R1 = torch.tensor(top_ps, dtype=torch.float64, device=probs_RV.device)[:, None]
    likeliest_RK = probs_RV.topk(min(NUCLEUS, probs_RV.shape[-1])).values
    wider = torch.nonzero((likeliest_RK.double().sum(-1, keepdim=True) < top_p_R1).squeeze(1)).squeeze(1)
    kept_RV = _kept(probs_RV, likeliest_RK, top_p_R1)
    if len(wider):
        sorted_RV = probs_RV[wider].sort(dim=-1, descending=True).values
        kept_RV[wider] = _kept(probs_RV[wider], sorted_RV, top_p_R1[wider])
    return torch.where(kept_RV, probs_RV, 0.0)


def _kept(probs_RV: torch.Tensor, likeliest_RK: torch.Tensor, top_p_R1: torch.Tensor) -> torch.Tensor:
    """Whether a token is in the nucleus, which has no more tokens than ``likeliest_RK``, the largest of its row's
    probabilities in falling order."""
    before_RK = likeliest_RK.double().cumsum(dim=-1) - likeliest_RK
    num_kept_R1 = (before_RK < top_p_R1).sum(dim=-1, keepdim=True)
    least_R1 = likeliest_RK.gather(1, (num_kept_R1 - 1).clamp(min=0))  # none is kept of what is no number
    above_RV, equal_RV = probs_RV > least_R1, probs_RV == least_R1
    num_equal_R1 = num_kept_R1 - above_RV.sum(dim=-1, keepdim=True)
    return above_RV | (equal_RV & (equal_RV.cumsum(dim=-1) <= num_equal_R1))
