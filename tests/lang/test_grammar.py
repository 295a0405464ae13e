"""The decoding grammar: whatever is chosen among what it allows is a well-formed document."""

import random

import pytest

from pasta_ray.lang import PositionStrategy, TagMap, TokenFormError, decode_document, parse, read_tokens
from pasta_ray.lang.grammar import (
    ALLOWS,
    DIGITS_LEFT,
    LIMITS,
    MAX_TOPIC_TOKENS,
    BodyGrammar,
    Kind,
    MainGrammar,
    Phase,
    Unconstrained,
    body_budget,
    free_row,
    kinds_of,
)

VOCABULARY = ["a", "bc", " d", " ef", "\n", '"', "<", " ", "0", "7", "42", "123", "1234", "é", "�", "<end>", "x" * 16]
TAGS = TagMap.after(len(VOCABULARY))
TAG_KINDS = dict(
    zip(TAGS.ids, [Kind.PROMISE, Kind.TOKENS, Kind.PROMISE_END, None, Kind.ASYNC_END, Kind.SYNC], strict=True)
)
KINDS = [kinds_of(text, special=text == "<end>") for text in VOCABULARY]


class Vocabulary:
    def encode(self, text: str) -> list[int]:
        raise AssertionError(f"not used: {text}")

    def decode(self, ids: object) -> str:
        assert isinstance(ids, list | tuple)
        return "".join(VOCABULARY[i] for i in ids)


def allowed(phase: int) -> list[int]:
    """What a mask of this phase lets through, as the engine builds it."""
    ids = []
    for token in range(len(VOCABULARY) + 6):
        kinds = KINDS[token] if token < len(VOCABULARY) else {TAG_KINDS[token]}
        fits = ALLOWS[Phase(phase)] & kinds
        left = DIGITS_LEFT.get(Phase(phase), 0)
        if fits & {Kind.DIGITS, Kind.FIRST_DIGITS} and len(VOCABULARY[token]) > left:
            fits -= {Kind.DIGITS, Kind.FIRST_DIGITS}
        if fits:
            ids.append(token)
    return ids


def unlimited(row: int) -> list[int]:
    """What a branch without the constraint may write in the phase of its mask row."""
    phase = Phase(row - free_row(0))
    if phase is Phase.BODY_END:
        return allowed(phase)
    ids = []
    for token in range(len(VOCABULARY) + 6):
        kinds = KINDS[token] if token < len(VOCABULARY) else {TAG_KINDS[token]}
        too_long = Kind.DIGITS in kinds and len(VOCABULARY[token]) > DIGITS_LEFT.get(phase, 3)
        if not too_long and not kinds & LIMITS.get(phase, frozenset()):
            ids.append(token)
    return ids


def write_randomly(rng: random.Random, num_main: int, tags: TagMap = TAGS) -> list[int]:
    """A random answer in linear token form, tags preferred, every token chosen among the allowed ones."""
    main = MainGrammar(tags, VOCABULARY.__getitem__, max_promises=4, max_branches=3, positions_left=5000)
    ids: list[int] = []
    for _ in range(num_main):
        choices = allowed(main.mask_row)
        acting = [token for token in choices if token in TAGS.ids]
        token = rng.choice(acting if acting and rng.random() < 0.5 else choices)
        main.advance(token)
        ids.append(token)
        if token == TAGS.promise_end:
            body = BodyGrammar(body_budget(10))
            ids.append(TAGS.async_)
            while ids[-1] != TAGS.async_end:
                ids.append(rng.choice(allowed(body.mask_row)))
                body.advance(ids[-1])
            assert body.num_tokens <= body.budget
    while main.phase > Phase.MAIN_OPEN:
        ids.append(rng.choice(allowed(main.mask_row)))
        main.advance(ids[-1])
    if ids and ids[-1] == TAGS.promise_end:
        ids += [TAGS.async_, 0, TAGS.async_end]
    return ids


@pytest.mark.parametrize(("name", "longest"), [("pred-10x", 990), ("pred-1x", 999), ("fixed", 990)])
def test_random_constrained_answers_always_parse(name: str, longest: int) -> None:
    """Guards against a hole in the masks: a topic of four words, a length of 0, a sync with nothing open; and against
    a strategy that cannot write the lengths it should."""
    rng = random.Random(5)
    tags = TagMap.after(len(VOCABULARY), PositionStrategy.named(name))
    lengths = []
    for _ in range(300):
        ids = write_randomly(rng, rng.randint(1, 40), tags)
        document = decode_document(read_tokens(ids, Vocabulary(), tags), Vocabulary(), tags)
        assert parse(document.linear(), tags.positions) == document
        lengths += [promise.num_tokens for promise in document.promises]
    assert len(lengths) > 300
    assert longest // 2 < max(lengths) <= longest


def test_a_fixed_gap_needs_less_room() -> None:
    """Guards the room check against the longest prediction where the gap is another: 50 positions, not 990."""
    tags = TagMap.after(len(VOCABULARY), PositionStrategy.named("fixed"))
    main = MainGrammar(tags, VOCABULARY.__getitem__, max_promises=2, max_branches=1, positions_left=50)
    assert TAGS.promise in allowed(main.mask_row)
    main.positions_left = 49
    assert TAGS.promise not in allowed(main.mask_row)


def test_without_the_masks_the_same_writer_breaks_the_grammar() -> None:
    """Guards the test above: it would notice."""
    rng = random.Random(5)
    ids = [rng.randrange(len(VOCABULARY) + 6) for _ in range(200)]
    with pytest.raises(TokenFormError):
        read_tokens(ids, Vocabulary(), TAGS)


TEXT, SEVEN = VOCABULARY.index("a"), VOCABULARY.index("7")
ENDING = [TEXT, TAGS.tokens, SEVEN, TAGS.promise_end, TAGS.async_, TEXT, TAGS.async_end]


def parses(ids: list[int]) -> bool:
    """Whether some end makes the linear tokens a document."""
    for start in range(len(ENDING) + 1):
        try:
            read_tokens([*ids, *ENDING[start:]], Vocabulary(), TAGS)
        except TokenFormError:
            continue
        return True
    return False


def write_freely(rng: random.Random) -> tuple[list[int], bool]:
    """A random answer of a branch without the constraint, up to the token that breaks it, and whether one did."""

    def allows(row: int, token: int) -> bool:
        return token in allowed(row)

    def choose(row: int) -> int:
        """Mostly what fits, else anything that is not masked; the end of an answer is no token of its linear form."""
        fitting = allowed(row - free_row(0)) if rng.random() < 0.97 else unlimited(row)
        tags = [token for token in fitting if token in TAGS.ids]
        choices = tags if tags and rng.random() < 0.5 else fitting
        return rng.choice([token for token in choices if token != VOCABULARY.index("<end>")])

    grammar = MainGrammar(TAGS, VOCABULARY.__getitem__, max_promises=3, max_branches=3, positions_left=5000)
    main, ids = Unconstrained(grammar, allows), list[int]()
    for _ in range(30):
        ids.append(choose(main.mask_row))
        main.advance(ids[-1])
        if main.broken:
            return ids, True
        if ids[-1] == TAGS.promise_end:
            body = Unconstrained(BodyGrammar(12), allows)
            ids.append(TAGS.async_)
            while ids[-1] != TAGS.async_end:
                ids.append(choose(body.mask_row))
                body.advance(ids[-1])
                if body.broken:
                    return ids, True
    return ids, False


def test_what_breaks_the_grammar_is_what_no_end_can_mend() -> None:
    """Guards the count of violations in both directions: against limits that are counted as breaks, and against breaks
    that are masked as limits or not noticed."""
    rng = random.Random(6)
    num_broken = 0
    for _ in range(500):
        ids, broken = write_freely(rng)
        assert parses(ids) != broken, [VOCABULARY[id_] if id_ < TAGS.promise else TAG_KINDS[id_] for id_ in ids]
        assert not broken or parses(ids[:-1])
        num_broken += broken
    assert 100 < num_broken < 450


def test_limits_mask_the_promise() -> None:
    """Guards against more promises, or more open bodies, than a request allows."""
    main = MainGrammar(TAGS, VOCABULARY.__getitem__, max_promises=2, max_branches=1, positions_left=2000)
    assert TAGS.promise in allowed(main.mask_row)
    for token in (TAGS.promise, 0, TAGS.tokens, 9, TAGS.promise_end):
        assert token in allowed(main.mask_row)
        main.advance(token)
    main.num_open = 1
    assert TAGS.promise not in allowed(main.mask_row), "one body is open, and no more are allowed at once"
    assert TAGS.sync in allowed(main.mask_row)
    main.num_open = 0
    assert TAGS.promise in allowed(main.mask_row)
    main.positions_left = 980
    assert TAGS.promise not in allowed(main.mask_row), "the longest promise would leave the model's positions"
    main.positions_left = 2000
    main.num_promises = 2
    assert TAGS.promise not in allowed(main.mask_row)


def test_a_topic_ends() -> None:
    """Guards against a small model that counts for ever inside a topic."""
    main = MainGrammar(TAGS, VOCABULARY.__getitem__, max_promises=2, max_branches=1, positions_left=2000)
    main.advance(TAGS.promise)
    for _ in range(MAX_TOPIC_TOKENS):
        assert 0 in allowed(main.mask_row)
        main.advance(0)
    assert allowed(main.mask_row) == [TAGS.tokens]


def test_a_body_is_closed_at_its_budget() -> None:
    """Guards against a body that never ends: the budget is 2N, at least N + 64, tags counted."""
    assert (body_budget(10), body_budget(100)) == (74, 200)
    body = BodyGrammar(5)
    assert TAGS.async_end not in allowed(body.mask_row), "an empty body says nothing"
    for _ in range(3):
        assert TAGS.promise not in allowed(body.mask_row)
        body.advance(0)
    assert allowed(body.mask_row) == [TAGS.async_end]
    body.advance(TAGS.async_end)
    assert body.at_budget


def test_an_end_token_is_not_offered_inside_a_promise_or_body() -> None:
    """Guards against an answer that ends in the middle of a tag."""
    end = VOCABULARY.index("<end>")
    for phase in Phase:
        assert (end in allowed(phase)) == (phase <= Phase.MAIN_OPEN_FULL)
