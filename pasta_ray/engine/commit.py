"""What a step leaves behind: tokens sampled, drafts verified, branches moved on.

Axes: R row whose logits were computed, V vocabulary.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice

import torch

from pasta_ray.engine.branch import Branch, Constraint, num_equal
from pasta_ray.engine.sampler import SampleRow, Scores, sample, score
from pasta_ray.engine.scheduler import Feed, RequestFeeds

MAX_HIDDEN = 8
"""So many more of the likeliest tokens are scored than were asked for, because tags and ends are not shown."""


@dataclass(frozen=True, eq=False)
class StepOutput:
    """What a step gave a branch: ``tokens``, the accepted ones of its draft of ``num_drafted`` and the one sampled
    behind them, which is pending now; none where tokens still wait to be fed. ``scores`` are the tokens', where the
    branch's sampling asks for them, else Nones. And for a branch with ``keep_logits`` the float32 [num fed, vocab]
    ``logits`` behind every token fed, rejected ones apart."""

    branch: Branch
    tokens: tuple[int, ...]
    scores: tuple[Scores | None, ...]
    num_drafted: int
    logits: torch.Tensor | None


def commit(batch: list[RequestFeeds], logits_RV: torch.Tensor, masks: torch.Tensor | None) -> list[StepOutput]:
    """Mark the batch as fed, and append a sampled token to every branch that has run out."""
    feeds = [feed for request in batch for feed in request]
    samples = _sample(feeds, logits_RV, masks)
    outputs = []
    row = 0
    for feed in feeds:
        branch, num_logits, num_drafted = feed.branch, feed.num_logits, feed.branch.num_draft
        branch.mark_fed(feed.num_tokens)
        sampled = samples.get(branch, [])
        tokens = accept(branch, [token for token, _ in sampled]) if sampled else ()
        scores = tuple(score for _, score in sampled[: len(tokens)])
        num_rejected = num_drafted + 1 - len(tokens) if tokens else 0
        logits = logits_RV[row : row + num_logits - num_rejected] if branch.keep_logits and num_logits else None
        row += num_logits
        if tokens or logits is not None:
            outputs.append(StepOutput(branch, tokens, scores, num_drafted, logits))
    return outputs


def allowed(
    ids: Sequence[int], constraint: Constraint | None, masks: torch.Tensor | None, vocab_size: int
) -> list[int]:
    """``ids`` up to the first that is no token or that the constraint forbids there."""
    ahead = copy(constraint)
    kept: list[int] = []
    for token in ids:
        if not 0 <= token < vocab_size:
            break
        if ahead is not None:
            assert masks is not None, "a branch has a constraint, but the engine has no masks"
            if not masks[ahead.mask_row, token]:
                break
            ahead.advance(token)
        kept.append(token)
    return kept


def _sample(
    feeds: list[Feed], logits_RV: torch.Tensor, masks: torch.Tensor | None
) -> dict[Branch, list[tuple[int, Scores | None]]]:
    """For each branch that has run out, the samples behind its last token, or behind that and each guess."""
    rows: list[SampleRow] = []
    picked: list[int] = []
    stop = 0
    for feed in feeds:
        stop += feed.num_logits
        if feed.samples:
            rows += _sample_rows(feed.branch)
            picked += range(stop - 1 - feed.branch.num_draft, stop)
    if not rows:
        return {}
    if len(rows) != len(logits_RV):
        logits_RV = logits_RV[torch.tensor(picked, device=logits_RV.device)]
    tokens = sample(logits_RV, rows, masks)
    samples = zip(tokens, _scores(logits_RV, rows, tokens), strict=True)
    return {feed.branch: list(islice(samples, 1 + feed.branch.num_draft)) for feed in feeds if feed.samples}


def _scores(logits_RV: torch.Tensor, rows: Sequence[SampleRow], tokens: Sequence[int]) -> list[Scores | None]:
    """Of the rows that ask for them; the others cost nothing."""
    scores: list[Scores | None] = [None] * len(rows)
    wanted = {i: row.sampling.logprobs for i, row in enumerate(rows) if row.sampling.logprobs is not None}
    if wanted:
        scored = score(logits_RV[list(wanted)], [tokens[i] for i in wanted], max(wanted.values()) + MAX_HIDDEN)
        for i, own in zip(wanted, scored, strict=True):
            scores[i] = own
    return scores


def _sample_rows(branch: Branch) -> list[SampleRow]:
    """How the branch samples behind its last token that is no guess, and behind each guess, were it right."""
    assert branch.sampling is not None
    ahead = copy(branch.constraint) if branch.num_draft else branch.constraint
    rows = []
    for index, token in enumerate([*branch.draft, None], len(branch.tokens) - branch.num_draft):
        rows.append(SampleRow(branch.sampling, branch.path, index, ahead.mask_row if ahead is not None else None))
        if ahead is not None and token is not None:
            ahead.advance(token)
    return rows


def accept(branch: Branch, samples: Sequence[int]) -> tuple[int, ...]:
    """Keep the draft as far as it equals the samples, and append the sample behind that; gives the new tokens."""
    num_accepted = num_equal(branch.draft, samples)
    tokens = tuple(samples[: num_accepted + 1])
    branch.accept_draft(num_accepted)
    branch.append(tokens[-1:])
    if branch.constraint is not None:
        for token in tokens:
            branch.constraint.advance(token)
    return tokens
