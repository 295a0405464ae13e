"""BoNBoN against a case worked out by hand, and against what it is for."""

import pytest
import torch
from torch import Tensor

from pasta_ray.train.loss import bonbon_beta, bonbon_loss, bonbon_scale, sequence_log_probs


def test_beta_of_best_of_n() -> None:
    """Guards the formula: by hand for 2 and 10, and the value that the method's authors train with for 8."""
    assert bonbon_beta(2) == pytest.approx(1 / 2)
    assert bonbon_beta(8) == pytest.approx(0.0275482094)
    assert 1 / (2 * bonbon_beta(10)) == pytest.approx(9 * (7129 / 2520))
    with pytest.raises(ValueError, match="two samples"):
        bonbon_beta(1)


def test_value_and_gradient_of_a_case_worked_out_by_hand() -> None:
    """Guards sign, weight and target: α = 0.25, β = 0.5, so that Δ is to be 1.

    Pair 1: Δ = (−3 + 5) − (−4 + 5) = 1: at its target, so −α·log π(y⁺) = 0.75 alone.
    Pair 2: Δ = (−2 + 1) − (−2 + 4) = −3: 0.25·2 + 0.75·16 = 12.5; d/dΔ = 0.75·2·(−4) = −6, so −0.25 − 6 and + 6.
    """
    chosen = torch.tensor([-3.0, -2.0], requires_grad=True)
    rejected = torch.tensor([-5.0, -1.0], requires_grad=True)
    result = bonbon_loss(chosen, rejected, torch.tensor([-4.0, -2.0]), torch.tensor([-5.0, -4.0]), 0.25, 0.5)
    assert result.loss.tolist() == [0.75, 12.5]
    assert result.delta.tolist() == [1.0, -3.0]
    assert result.likelihood.tolist() == [3.0, 2.0]
    assert result.contrast.tolist() == [0.0, 16.0]
    result.loss.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == [-0.25, -6.25]
    assert rejected.grad.tolist() == [0.0, 6.0]


def test_sums_of_responses() -> None:
    """Guards against labels counted for a neighbour, and a response without any."""
    sums = sequence_log_probs(torch.tensor([-1.0, -2.0, -4.0, -8.0]), [1, 0, 3])
    assert sums.tolist() == [-1.0, 0.0, -14.0]


def toy_log_prob(logits: Tensor, response: Tensor) -> Tensor:
    """A bigram policy's log π(response): logits [V, V], ids [T], the first token given."""
    return torch.log_softmax(logits[response[:-1]], dim=-1).gather(1, response[1:, None]).sum()


def test_a_toy_policy_comes_to_prefer_the_chosen_response() -> None:
    """Guards the purpose: Δ reaches its target, the chosen response becomes likelier and the rejected one less so,
    although they are long and share most of their tokens."""
    torch.manual_seed(0)
    start = torch.randn(12, 12)
    rejected = torch.randint(12, (200,))
    chosen = rejected.clone()
    chosen[50:90] = torch.randint(12, (40,))
    before = [toy_log_prob(start, response) for response in (chosen, rejected)]
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    beta = bonbon_beta(10)
    for _ in range(300):
        after = [toy_log_prob(logits, response)[None] for response in (chosen, rejected)]
        result = bonbon_loss(*after, before[0][None], before[1][None], 0.005, beta)
        optimizer.zero_grad()
        (result.loss.mean() * bonbon_scale(1 / (2 * beta), 199)).backward()
        optimizer.step()
    assert result.delta.item() == pytest.approx(1 / (2 * beta), abs=0.1)
    assert after[0].item() > before[0].item()
    assert after[1].item() < before[1].item()
    assert after[0].item() > after[1].item()
