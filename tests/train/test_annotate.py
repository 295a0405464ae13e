"""From pairs to records: what is dropped is counted, what was cut off loses only its last part."""

import json
from pathlib import Path

import pytest

from pasta_ray.errors import InputError
from pasta_ray.lang import parse
from pasta_ray.train.annotate import Annotated, Pair, Selection, annotate_pairs, read_pairs, repetition

NAMES = ["", "Apples", "Bread", "Cheese", "Dates", "Eggs", "Figs"]
ITEM = "a part that is long enough to be worth a promise of its own, with quite a few words in it, number"


def answer(num_items: int) -> str:
    return "\n".join(f"{i}. {NAMES[i]}: {ITEM} {i}" for i in range(1, num_items + 1))


def run(*pairs: Pair, **selection: object) -> tuple[list[dict[str, str]], Annotated]:
    counts = Annotated()
    chosen = Selection(**({"max_repetition": 1.0} | selection))  # type: ignore[arg-type]
    return list(annotate_pairs(pairs, lambda text: len(text.split()), chosen, counts)), counts


def pair(output: str, **fields: object) -> Pair:
    return Pair.model_validate({"id": "p", "instruction": "Do it", "output": output} | fields)


def test_a_cut_off_answer_loses_its_last_part() -> None:
    """Guards against teaching a model to stop in mid-sentence."""
    (record,), _ = run(pair(answer(4), finished=False))
    assert parse(record["document"]).text() == answer(3)
    records, counts = run(pair(answer(2), finished=False), pair("plain words and no end in sight here", finished=False))
    assert not records
    assert counts.dropped == {"cut off": 2}


def test_long_lists_end_and_topics_differ() -> None:
    """Guards against teaching a small model to go on for ever, or to promise the same thing twice."""
    (record,), _ = run(pair(answer(6)), max_promises=4)
    assert parse(record["document"]).text() == answer(4)
    alike = pair(answer(4).replace("Bread", "Apples again").replace("Dates", "Cheese again"))
    counted = pair(answer(3).replace("2. Bread", "2. 2. Bread"))
    records, counts = run(alike, counted)
    assert not records
    assert counts.dropped == {"repeats a topic": 1, "numbered twice": 1}


def test_every_drop_has_a_reason() -> None:
    """Guards against data that vanishes: documents and drops add up to the input."""
    loop = "the same six words come again " * 10
    pairs = [
        pair(answer(3)),
        pair(answer(3), benchmark=True),
        pair(answer(3), split="val"),
        pair("short"),
        pair("word " * 500),
        pair(loop),
        pair(answer(3), instruction="long " * 300),
        pair("a plain answer of more than eight words in all"),
    ]
    records, counts = run(*pairs, max_repetition=0.5, only_promising=True)
    assert len(records) == counts.num_documents == counts.num_with_promises == 1
    assert counts.num_promises == 3
    assert counts.dropped.total() + counts.num_documents == len(pairs)
    assert set(counts.dropped) == {
        "benchmark prompt",
        "val split",
        "answer too short",
        "answer too long",
        "repeats itself",
        "prompt too long",
        "no promise",
    }


def test_repetition() -> None:
    """Guards the measure of looping at its ends."""
    assert repetition("all of these words are different ones") == 0
    assert repetition("few") == 0
    assert repetition("a b c d e f " * 50) > 0.9


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    """Guards against an error that does not say where."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"id": "1", "instruction": "i", "output": "o"}) + "\n{}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"pairs\.jsonl, line 2"):
        list(read_pairs(path))
    with pytest.raises(InputError, match="No such file"):
        list(read_pairs(tmp_path / "none"))
