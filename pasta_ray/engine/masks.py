"""The tag grammar over one vocabulary: a bank of masks, one row for each phase."""

import torch

from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.lang.apar import ControlMap
from pasta_ray.lang.grammar import ALLOWS, DIGITS_LEFT, LIMITS, MAX_COUNT_DIGITS, Kind, Phase, free_row, kinds_of
from pasta_ray.lang.tags import TagMap, TokenMap


def build_masks(tokenizer: Tokenizer, vocab_size: int) -> torch.Tensor:
    """Bool [2 * num_phases, vocab_size], True where a phase allows a token; behind all phases the same number of rows
    for branches without the constraint (:func:`~pasta_ray.lang.grammar.free_row`), False where a limit forbids one.

    Ids that the tokenizer does not know (a padded vocabulary) count as text, so that a plain branch chooses among all
    that the model offers.
    """
    tag_kinds = _tag_kinds(tokenizer.tags)
    by_kind = {kind: torch.zeros(vocab_size, dtype=torch.bool) for kind in Kind}
    by_digits = [torch.zeros(vocab_size, dtype=torch.bool) for _ in range(MAX_COUNT_DIGITS + 1)]
    for token in range(vocab_size):
        if token in tag_kinds:
            kind = tag_kinds[token]
            if kind:
                by_kind[kind][token] = True
            continue
        known = token < tokenizer.vocab_size
        text = tokenizer.token_text(token) if known else ""
        for kind in kinds_of(text, special=not known or tokenizer.is_special(token)):
            by_kind[kind][token] = True
        if by_kind[Kind.DIGITS][token]:
            for left in range(len(text), len(by_digits)):
                by_digits[left][token] = True
    bank = torch.zeros(2 * len(Phase), vocab_size, dtype=torch.bool)
    for phase in Phase:
        too_long = by_kind[Kind.DIGITS] & ~by_digits[DIGITS_LEFT.get(phase, MAX_COUNT_DIGITS)]
        for kind in ALLOWS[phase]:
            row = by_kind[kind]
            bank[phase] |= row & ~too_long if kind in (Kind.DIGITS, Kind.FIRST_DIGITS) else row
        free = bank[free_row(phase)]
        free |= ~too_long
        for kind in LIMITS.get(phase, ()):
            free &= ~by_kind[kind]
    bank[free_row(Phase.BODY_END)] = bank[Phase.BODY_END]  # a budget is a limit, and the end tag all that keeps it
    return bank


def _tag_kinds(tags: TokenMap | None) -> dict[int, Kind | None]:
    """The kind of each token that acts; None for those that are only ever forced."""
    match tags:
        case TagMap():
            return {
                tags.promise: Kind.PROMISE,
                tags.tokens: Kind.TOKENS,
                tags.promise_end: Kind.PROMISE_END,
                tags.async_: None,
                tags.async_end: Kind.ASYNC_END,
                tags.sync: Kind.SYNC,
            }
        case ControlMap():
            return {tags.fork: Kind.FORK, tags.child: None}
        case _:
            return {}
