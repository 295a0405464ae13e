"""Losses, as pure functions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pasta_ray.train.data import KINDS


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each label: logits float32 [M, V], labels int64 [M] -> float32 [M]."""
    return F.cross_entropy(logits, labels, reduction="none")


def mean_by_kind(losses: Tensor, kinds: Tensor) -> dict[str, float]:
    """Mean loss of all labels, and of those of each kind that occurs: losses [M], kinds int64 [M]."""
    losses = losses.detach()
    means = {"loss": losses.mean().item()}
    for index, kind in enumerate(KINDS):
        chosen = kinds == index
        if torch.any(chosen):
            means[f"loss_{kind}"] = losses[chosen].mean().item()
    return means
