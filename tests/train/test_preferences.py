"""Pairs from scored samples: who is chosen, what is left out, and which tokens count as the model's own."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.errors import InputError
from pasta_ray.lang import TagMap
from pasta_ray.train.preferences import (
    BELOW,
    CUT_OFF,
    SAME,
    TIED,
    Scored,
    build_response,
    choose_pairs,
    read_scored,
)
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

TAGS = TagMap.after(300)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(save_tokenizer(save_model(tmp_path_factory.mktemp("model"), vocab_size=300)), None)


def sample(prompt: str, number: int, speedup: float, quality: float | None, **changes: Any) -> Scored:
    fields = {
        "id": f"{prompt}#{number}",
        "prompt_id": prompt,
        "instruction": "Say",
        "document": f"answer {number}",
        "finish_reason": "stop",
        "completion_tokens": 10 + number,
        "speedup": speedup,
        "quality": quality,
    }
    return Scored.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("weight", "chosen", "rejected"), [(0.0, 0, 2), (1.0, 0, 2), (4.0, 1, 0), (math.inf, 2, 0), (2.0, 1, 2)]
)
def test_the_weight_decides_between_speed_and_quality(weight: float, chosen: int, rejected: int) -> None:
    """Guards the ranking for each λ: scores worked out by hand."""
    samples = [sample("p", 0, 2.5, 0.3), sample("p", 1, 2.0, 0.8), sample("p", 2, 1.0, 0.82)]
    (pair,) = choose_pairs(samples, weight).pairs
    assert (pair.chosen.id, pair.rejected.id) == (f"p#{chosen}", f"p#{rejected}")
    if weight == 2.0:
        assert (pair.chosen_score, pair.rejected_score) == pytest.approx((3.6, 2.64))


def test_what_makes_no_pair_is_counted() -> None:
    """Guards against pairs without a difference, and against prompts that vanish without a count."""
    samples = [
        sample("one", 0, 1.0, 0.5),
        *(sample("same", n, 1.0 + n, 0.5, document="x") for n in range(3)),
        *(sample("tied", n, 1.5, 0.5) for n in range(3)),
        *(sample("good", n, 1.0 + n, 0.5) for n in range(3)),
    ]
    pairs = choose_pairs(samples, 1.0)
    assert [pair.chosen.prompt_id for pair in pairs.pairs] == ["good"]
    assert pairs.left_out == {SAME: 2, TIED: 1}
    assert (pairs.num_prompts, pairs.sizes) == (4, {1: 1, 3: 3})
    assert pairs.pairs[0].num_samples == 3


def test_a_cut_off_answer_is_never_preferred_to_a_finished_one() -> None:
    """Guards against teaching answers that do not end: they often look fast."""
    cut = {"finish_reason": "length"}
    samples = [
        *(sample("a", 0, 3.0, 0.9, **cut), sample("a", 1, 2.0, 0.5), sample("a", 2, 1.0, 0.5)),
        *(sample("b", 0, 1.0, 0.9, **cut), sample("b", 1, 2.0, 0.5)),
        *(sample("c", 0, 3.0, 0.9, **cut), sample("c", 1, 2.0, 0.5)),
        *(sample("d", 0, 3.0, 0.9, **cut), sample("d", 1, 2.0, 0.5, **cut)),
    ]
    pairs = choose_pairs(samples, 1.0)
    assert [(pair.chosen.id, pair.rejected.id) for pair in pairs.pairs] == [("a#1", "a#2"), ("b#1", "b#0")]
    assert pairs.left_out == {BELOW: 1, CUT_OFF: 1}
    report = pairs.report()
    assert (report["num_cut_off_samples"], report["num_cut_off_chosen"], report["num_cut_off_rejected"]) == (5, 0, 1)
    assert choose_pairs(samples, 1.0, pair_cut_off=True).pairs[-1].chosen.id == "d#0"


def test_a_cut_off_answer_has_no_quality() -> None:
    """Guards against loops that the judge likes: by quality they are the worst, whatever it said."""
    cut = {"finish_reason": "length"}
    samples = [sample("a", 0, 2.0, 0.9, **cut), sample("a", 1, 1.5, 0.5), sample("a", 2, 1.0, 0.4)]
    for weight, rejected in ((math.inf, 0), (4.0, 0), (0.5, 2)):
        (pair,) = choose_pairs(samples, weight).pairs
        assert (pair.chosen.id, pair.rejected.id) == ("a#1", f"a#{rejected}")


def test_the_report_says_what_was_chosen() -> None:
    """Guards the figures by which a reader sees whether stage 2 learns speed, quality or length."""
    samples = [sample(p, n, 1.0 + n, 0.25 * n) for p in "ab" for n in range(3)]
    report = choose_pairs(samples, 2.0).report()
    assert report["chosen"] == {"speedup": 3.0, "quality": 0.5, "completion_tokens": 12.0}
    assert report["rejected"] == {"speedup": 1.0, "quality": 0.0, "completion_tokens": 10.0}
    assert report["chosen_longer"] == 1.0


def test_bad_lines_are_named(tmp_path: Path) -> None:
    """Guards against errors that do not say which line and field: above all for samples that nobody has scored."""
    path = tmp_path / "scored.jsonl"

    def write(*samples: Scored, **changes: Any) -> None:
        lines = [json.dumps(json.loads(s.model_dump_json()) | changes) for s in samples]
        path.write_text("\n".join(lines), encoding="utf-8")

    first = sample("p", 0, 1.0, None)
    write(first)
    with pytest.raises(InputError, match="line 1: quality: missing"):
        read_scored([path], need_quality=True)
    assert read_scored([path], need_quality=False) == [first]
    write(first, first)
    with pytest.raises(InputError, match="line 2: id: 'p#0' comes twice"):
        read_scored([path], need_quality=False)
    write(first, finish_reason="stopped")
    with pytest.raises(InputError, match="line 1: finish_reason"):
        read_scored([path], need_quality=False)


BODY = '<promise topic="t" tokens="{tokens}"/><async>{text}</async>'


def labelled_ends(document: str, finish_reason: str, tokenizer: Tokenizer) -> tuple[list[bool], bool]:
    """Whether each body's end is labelled, and whether the last token is a labelled end of the answer."""
    example = build_response(sample("p", 0, 1.0, 0.5, document=document, finish_reason=finish_reason), tokenizer, TAGS)
    ids, sources = example.layout.ids, example.layout.label_source
    ends = [sources[i] is not None for i, token in enumerate(ids) if token == TAGS.async_end]
    return ends, ids[-1] == tokenizer.stop_ids[0] and sources[-1] is not None


def test_labels_are_what_the_model_sampled(tokenizer: Tokenizer) -> None:
    """Guards log π(y) against tokens that the decoder wrote: of bodies at their budget, and behind a cut."""
    short, long = BODY.format(tokens=20, text=" a"), BODY.format(tokens=10, text="b" * 72)
    assert labelled_ends(f"x{short}<sync/>{long} y", "stop", tokenizer) == ([True, False], True)
    fits = BODY.format(tokens=10, text="b" * 71)
    assert labelled_ends(fits, "stop", tokenizer) == ([True], True)
    assert labelled_ends(f"x{short}<sync/>{short} y", "length", tokenizer) == ([True, False], False)
    assert labelled_ends(f"x{short}<sync/>", "length", tokenizer) == ([False], False)
    assert labelled_ends(f"x{short}<sync/> y", "length", tokenizer) == ([True], False)


def test_predicted_lengths_stay_as_generated(tokenizer: Tokenizer) -> None:
    """Guards against a sample that is made truer than it was: its N is what the model wrote, and moves positions."""
    example = build_response(sample("p", 0, 1.0, 0.5, document=BODY.format(tokens=90, text=" a")), tokenizer, TAGS)
    ids = list(example.layout.ids)
    count = ids[ids.index(TAGS.tokens) + 1 : ids.index(TAGS.promise_end)]
    assert tokenizer.decode(count) == "9"
    assert example.layout.positions[-1] == example.layout.positions[ids.index(TAGS.promise_end)] + 1 + 90
