"""Losses, as pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pasta_ray.train.data import KINDS


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each label: logits float32 [M, V], labels int64 [M] -> float32 [M]."""
    return F.cross_entropy(logits, labels, reduction="none")


def sums_by_kind(losses: Tensor, kinds: Tensor) -> dict[str, tuple[float, float]]:
    """Sum and count of the losses of each kind that occurs, as ``loss_KIND``: losses [M], kinds int64 [M]."""
    losses = losses.detach()
    chosen = {kind: kinds == index for index, kind in enumerate(KINDS)}
    return {
        f"loss_{kind}": (losses[mask].sum().item(), mask.sum().item()) for kind, mask in chosen.items() if mask.any()
    }


def label_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability in nats of each label: logits float32 [M, V], labels int64 [M] -> float32 [M]."""
    return -next_token_loss(logits, labels)


def bonbon_beta(num_samples: int) -> float:
    """The β at which the loss below fits the best of n against the worst: 1 / (2 (n−1) H(n−1)), H the harmonic number.

    It puts Δ's target, 1/(2β), at (n−1) H(n−1): what the log-ratio of best to worst changes by, in expectation, from
    one sample to the best of n (arXiv 2406.00832, section 4). n = 8: 0.02755, n = 10: 0.01964.
    """
    if num_samples < 2:
        raise ValueError(f"best and worst need two samples, not {num_samples}")
    others = num_samples - 1
    return 1 / (2 * others * sum(1 / k for k in range(1, others + 1)))


@dataclass(frozen=True)
class BonbonLoss:
    """Of P pairs, float32 [P] each, all with gradient: the loss, −log π(y⁺), (Δ − 1/(2β))², and Δ."""

    loss: Tensor
    likelihood: Tensor
    contrast: Tensor
    delta: Tensor


def bonbon_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    alpha: float,
    beta: float | Tensor,
) -> BonbonLoss:
    """BoNBoN: −α·log π(y⁺) + (1−α)·(Δ − 1/(2β))², for each pair (arXiv 2406.00832, section 4).

    All four are log-probabilities in nats of whole responses, sums over their tokens, float32 [P]: of the policy in
    training and of the initial model, for the better response y⁺ and the worse y⁻. Δ is the policy's
    log π(y⁺)/π(y⁻) minus the initial model's. The sums are not divided by their lengths: the target 1/(2β) is one of
    whole responses. ``beta`` may be each pair's own, [P].

    Scale: with n = 10 the target is 25 nats, so that a pair starts at a loss near 650 and a gradient of −51 a nat of
    Δ, beside which −α·log π(y⁺), of a few hundred nats, counts little until Δ is near its target: it is then what
    keeps log π(y⁺) from falling together with log π(y⁻). ``bonbon_scale`` brings that to stage 1's scale.
    """
    delta = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    likelihood = -policy_chosen
    contrast = (delta - 1 / (2 * beta)).square()
    return BonbonLoss(alpha * likelihood + (1 - alpha) * contrast, likelihood, contrast, delta)


def bonbon_scale(mean_target: float, mean_labels: float) -> float:
    """What the loss is multiplied by before its backward pass: 1 / (2 · Δ's target · a response's labels), both means.

    It is a constant of a run, so the minimum stays where it is. But the gradient, which would be thousands of times a
    mean over tokens', starts as that of Δ a token, so that clipping means what it does in stage 1.
    """
    return 1 / (2 * mean_target * mean_labels)


def sequence_log_probs(log_probs: Tensor, counts: Sequence[int]) -> Tensor:
    """Sums over each response: label log-probabilities float32 [M], its responses' labels counted -> float32 [R].

    float32 is enough: at 2,000 nats its steps are 1e-4, beside a target of 25; what Δ subtracts was summed alike.
    """
    return torch.stack([part.sum() for part in torch.split(log_probs, list(counts))])
