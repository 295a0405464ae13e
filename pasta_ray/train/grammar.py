"""How much of a model's probability breaks the tag grammar, at every token of a document.

A decoder masks what the grammar forbids, so an answer says nothing of what the model would have written without. That
can be learnt from: beside the tokens that were written, the probability that was masked away.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pasta_ray.engine.masks import build_masks
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.lang import Layout, TagMap
from pasta_ray.lang.grammar import BodyGrammar, Grammar, MainGrammar, Phase, free_row
from pasta_ray.train.data import Example

NO_LIMIT = 1 << 30


def label_phases(laid_out: Layout, tags: TagMap, token_text: Callable[[int], str]) -> list[int]:
    """Of each label of a layout, in order: the phase of the grammar in which a decoder would have sampled it. Limits of
    a decoder (branches, promises, budgets) are none of the grammar's, and do not count."""
    main = MainGrammar(tags, token_text, NO_LIMIT, NO_LIMIT, NO_LIMIT)
    branch: Grammar = main
    phases = list[int]()
    for token, source in zip(laid_out.ids, laid_out.label_source, strict=True):
        if token == tags.async_:
            branch = BodyGrammar(NO_LIMIT)
            continue
        if source is None:
            continue
        phases.append(branch.mask_row)
        branch.advance(token)
        if token == tags.async_end:
            branch = main
    return phases


def breaking(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """Bool [num_phases, vocab_size], True where a token would break the grammar in a phase."""
    bank = build_masks(tokenizer, vocab_size)
    return bank[free_row(0) :] & ~bank[: len(Phase)]


def masked_away(logits: Tensor, is_broken: Tensor) -> Tensor:
    """−log of the probability that the grammar leaves, in nats: logits float32 [M, V], ``is_broken`` bool [M, V], True
    where a token would break it -> float32 [M]. Nought where no probability lies on such tokens."""
    return logits.logsumexp(-1) - logits.masked_fill(is_broken, float("-inf")).logsumexp(-1)


class GrammarLoss:
    """:func:`masked_away` of packed examples."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        assert isinstance(tokenizer.tags, TagMap), "only PASTA-LANG has such a grammar"
        self._tokenizer, self._tags = tokenizer, tokenizer.tags
        self._breaking: Tensor | None = None

    def __call__(self, logits: Tensor, examples: Sequence[Example]) -> Tensor:
        """logits float32 [M, V] at the label sources of ``examples``, one after the other -> float32 [M]."""
        if self._breaking is None:
            self._breaking = breaking(self._tokenizer, logits.shape[-1]).to(logits.device)
        phases = [
            phase
            for example in examples
            for phase in label_phases(example.layout, self._tags, self._tokenizer.token_text)
        ]
        return masked_away(logits, self._breaking[torch.tensor(phases, device=logits.device)])
