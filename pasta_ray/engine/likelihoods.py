"""Scores of tokens become likelihoods of text, once the text is certain."""

from collections.abc import Sequence

from pasta_ray.engine.messages import Likelihood
from pasta_ray.engine.sampler import Scores
from pasta_ray.engine.tokenizer import Tokenizer

Scored = tuple[int, Scores]
MIN_LOGPROB = -9999.0  # OpenAI's word for "as good as impossible"; JSON has no infinity


def likelihoods(
    scored: Sequence[Scored], text: str, num_likeliest: int, tokenizer: Tokenizer
) -> tuple[Likelihood, ...]:
    """Of the sampled tokens that ``text`` is made of: one, or those that share a character. One that wrote a whole text
    is that text: its first token may lose the space that it has elsewhere."""
    whole = len(scored) == 1 and "\ufffd" not in text
    return tuple(
        _likelihood(id_, scores, text.encode() if whole else tokenizer.token_bytes(id_), num_likeliest, tokenizer)
        for id_, scores in scored
    )


def _likelihood(id_: int, scores: Scores, written: bytes, num_likeliest: int, tokenizer: Tokenizer) -> Likelihood:
    shown = [(other, logprob) for other, logprob in scores.likeliest if not tokenizer.is_special(other)]
    return Likelihood(
        written,
        max(scores.logprob, MIN_LOGPROB),
        tuple(
            (written if other == id_ else tokenizer.token_bytes(other), max(logprob, MIN_LOGPROB))
            for other, logprob in shown[:num_likeliest]
        ),
    )
