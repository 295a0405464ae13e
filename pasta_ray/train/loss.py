"""Losses, as pure functions."""

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
