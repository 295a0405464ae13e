"""From pairs to lines: what is dropped is counted, what was cut off loses only its last part, all is checked."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Promise, Sync, Text, parse
from pasta_ray.train.annotate import Counts, Line, Selection, annotate_pairs, repetition
from pasta_ray.train.annotators.base import Annotation
from pasta_ray.train.annotators.syntax import SyntaxAnnotator
from pasta_ray.train.endpoint import Usage
from pasta_ray.train.pairs import Pair, read_pairs

NAMES = ["", "Apples", "Bread", "Cheese", "Dates", "Eggs", "Figs"]
ITEM = "a part that is long enough to be worth a promise of its own, with quite a few words in it, number"


def answer(num_items: int) -> str:
    return "\n".join(f"{i}. {NAMES[i]}: {ITEM} {i}" for i in range(1, num_items + 1))


def count_words(text: str) -> int:
    return len(text.split())


class Always:
    """An annotator that gives each pair the same."""

    def __init__(self, annotation: Annotation) -> None:
        self.annotation = annotation

    def annotate(self, pairs: Sequence[Pair]) -> list[Annotation]:
        return [self.annotation for _ in pairs]


def run(*pairs: Pair, always: Annotation | None = None, **selection: object) -> tuple[list[Line], Counts]:
    chosen = Selection(**({"max_repetition": 1.0} | selection))  # type: ignore[arg-type]
    annotator = Always(always) if always else SyntaxAnnotator(count_words)
    lines = annotate_pairs(pairs, annotator, count_words, chosen)
    counts = Counts()
    for line in lines:
        counts.add(line)
    return lines, counts


def pair(output: str, **fields: object) -> Pair:
    return Pair.model_validate({"id": "p", "instruction": "Do it", "output": output} | fields)


def test_a_cut_off_answer_loses_its_last_part() -> None:
    """Guards against teaching a model to stop in mid-sentence."""
    (record,), _ = run(pair(answer(4), finished=False))
    assert parse(record["document"]).text() == answer(3)
    _, counts = run(pair(answer(2), finished=False), pair("plain words and no end in sight here", finished=False))
    assert counts.num_documents == 0
    assert counts.dropped == {"cut off": 2}


def test_long_lists_end_and_topics_differ() -> None:
    """Guards against teaching a small model to go on for ever, or to promise the same thing twice."""
    (record,), _ = run(pair(answer(6)), max_promises=4)
    assert parse(record["document"]).text() == answer(4)
    alike = pair(answer(4).replace("Bread", "Apples again").replace("Dates", "Cheese again"))
    counted = pair(answer(3).replace("2. Bread", "2. 2. Bread"))
    _, counts = run(alike, counted)
    assert counts.num_documents == 0
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
    lines, counts = run(*pairs, max_repetition=0.5, only_promising=True)
    assert len(lines) == len(pairs)
    assert counts.num_documents == counts.num_with_promises == 1
    assert counts.num_promises == 3
    assert counts.speedup == pytest.approx(lines[0]["speedup"])
    assert counts.speedup > 1.1
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


def test_no_annotator_is_trusted() -> None:
    """Guards against documents that say something else than the answer, or that nobody can read again."""
    text = "some words that are long enough to be an answer"
    changed = Document((Text(text.replace("words", "word")),))
    _, counts = run(pair(text), always=Annotation(changed))
    assert counts.dropped == {"the document changes the text": 1}
    bad = Document((Text(text),))
    object.__setattr__(bad, "nodes", (Sync(), Text(text)))
    _, counts = run(pair(text), always=Annotation(bad))
    assert counts.dropped == {"the document does not parse": 1}


def test_reasons_details_and_usage_stand_in_the_line() -> None:
    """Guards the report of a run that went on: it is made of the lines."""
    text = "some words that are long enough to be an answer"
    refused = Annotation(reason="nonsense", detail="the reply was a poem", usage=Usage(2, 100, 20))
    good = Annotation(Document((Text("some "), Promise("x", 10, (Text(text[5:]),)))), usage=Usage(1, 50, 10))
    lines, counts = run(pair(text, source="here"), always=refused)
    assert lines == [
        {
            "id": "p",
            "reason": "nonsense",
            "detail": "the reply was a poem",
            "usage": {"num_requests": 2, "prompt_tokens": 100, "completion_tokens": 20},
        }
    ]
    assert counts.usage == Usage(2, 100, 20)
    (line,), counts = run(pair(text, source="here", license="MIT"), always=good)
    assert list(line) == ["id", "instruction", "source", "license", "document", "speedup", "usage"]
    assert counts.usage == Usage(1, 50, 10)


def test_repetition() -> None:
    """Guards the measure of looping at its ends."""
    assert repetition("all of these words are different ones") == 0
    assert repetition("few") == 0
    assert repetition("a b c d e f " * 50) > 0.9


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    """Guards against an error that does not say where, and against two pairs of which only one is ever annotated."""
    path, again = tmp_path / "pairs.jsonl", tmp_path / "again.jsonl"
    good = json.dumps({"id": "1", "instruction": "i", "output": "o"})
    path.write_text(f"{good}\n{{}}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"pairs\.jsonl, line 2"):
        read_pairs([path])
    with pytest.raises(InputError, match="No such file"):
        read_pairs([tmp_path / "none"])
    path.write_text(f"{good}\n", encoding="utf-8")
    again.write_text(f"\n{good}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"again\.jsonl, line 2: id '1' was used before"):
        read_pairs([path, again])
