"""What other numerics cost in quality: how far they are from the exact engine on the exact engine's own answers."""

import math

import torch

from pasta_ray.engine import Engine
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.messages import Sampling


def answers(engine: Engine, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Greedy, the end-of-answer token included; all prompts at once."""
    branches = [engine.open(ids, sampling=Sampling()) for ids in prompts]
    limits = {branch: len(ids) + max_tokens for branch, ids in zip(branches, prompts, strict=True)}
    while any(not branch.settled for branch in branches):
        for output in engine.step():
            branch: Branch = output.branch
            if set(output.tokens) & set(engine.tokenizer.stop_ids) or len(branch.tokens) >= limits[branch]:
                engine.settle(branch)
    found = [branch.tokens[len(ids) :] for branch, ids in zip(branches, prompts, strict=True)]
    for branch in branches:
        engine.free(branch)
    return found


def forced(engine: Engine, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities, float32 [len(answer), vocab], of what may stand at each place of the answer."""
    branch = engine.open(prompt + answer[:-1], keep_logits=True)
    chunks = []
    while branch.num_pending:
        chunks += [output.logits for output in engine.step() if output.logits is not None]
    engine.free(branch)
    return torch.cat(chunks)[len(prompt) - 1 :].log_softmax(dim=-1)


def agreement(exact: Engine, other: Engine, prompts: list[list[int]], max_tokens: int) -> dict[str, float]:
    """Over all tokens of the exact engine's greedy answers: the share where both engines' likeliest tokens agree, the
    mean Kullback-Leibler divergence of the other from the exact distribution in nats, and both perplexities; and the
    share of answers that the other engine, left to itself, writes token for token alike."""
    exact_answers = answers(exact, prompts, max_tokens)
    other_answers = answers(other, prompts, max_tokens)
    num_equal = sum(a == b for a, b in zip(exact_answers, other_answers, strict=True))
    num_tokens = num_agreeing = 0
    divergence = exact_nll = other_nll = 0.0
    for prompt, answer in zip(prompts, exact_answers, strict=True):
        exact_log_probs, other_log_probs = forced(exact, prompt, answer), forced(other, prompt, answer)
        targets = torch.tensor(answer)[:, None]
        num_tokens += len(answer)
        num_agreeing += int((exact_log_probs.argmax(dim=-1) == other_log_probs.argmax(dim=-1)).sum())
        divergence += float((exact_log_probs.exp() * (exact_log_probs - other_log_probs)).sum())
        exact_nll -= float(exact_log_probs.gather(1, targets).sum())
        other_nll -= float(other_log_probs.gather(1, targets).sum())
    return {
        "prompts": len(prompts),
        "tokens": num_tokens,
        "top1_agreement": num_agreeing / num_tokens,
        "kl_divergence_mean_nats": divergence / num_tokens,
        "perplexity_exact": math.exp(exact_nll / num_tokens),
        "perplexity_other": math.exp(other_nll / num_tokens),
        "answers_equal_share": num_equal / len(prompts),
    }
