"""Scoring and win rates: what is compared with what, and that nothing is judged twice or lost."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.cli import main
from pasta_ray.errors import InputError, PastaError
from pasta_ray.train.judges import features as judge_features
from pasta_ray.train.judges.base import Answer, Comparison, Question
from pasta_ray.train.judges.winrate import pair_up, read_answers, read_questions, win_rate
from pasta_ray.train.score import Sample, Scored, opponents, read_samples, score_samples
from tests.train.test_judge_features import embed


class Lengths:
    """Prefers the longer text by 3 to 1; has no verdict on a text with ?, and breaks at one with !."""

    name = "lengths"

    def __init__(self, counts_wins: bool = False) -> None:
        self.counts_wins = counts_wins
        self.asked: list[tuple[str, str]] = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        texts = [(c.first.text, c.second.text) for c in comparisons]
        if any("!" in text for pair in texts for text in pair):
            raise PastaError("the judge is gone")
        self.asked += texts
        return [None if "?" in a + b else 0.5 + 0.25 * ((len(a) > len(b)) - (len(a) < len(b))) for a, b in texts]

    def features(self, question: Question, answer: Answer) -> dict[str, float]:
        return {"length": float(len(answer.text) + len(question.text))}

    def costs(self) -> dict[str, float]:
        return {}


def sample(prompt: str, k: int, text: str, **fields: object) -> dict[str, object]:
    return {
        "id": f"{prompt}#{k}",
        "prompt_id": prompt,
        "sample": k,
        "instruction": "say",
        "document": text,
        "text": text,
        "finish_reason": "stop",
        "speedup": 1.5,
    } | fields


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(samples: Path, out: Path, judge: Lengths, **options: Any) -> Scored:
    result = Scored()
    list(score_samples(read_samples(samples), judge, out, result, **options))
    return result


def test_quality_is_the_win_rate_among_the_prompts_samples(tmp_path: Path) -> None:
    """Guards the numbers: by hand, for three samples of lengths 1, 2 and 2, and that the sample's line is carried."""
    lines = [
        sample("p", 0, "a", seed=5),
        sample("p", 1, "bb"),
        sample("p", 2, "cc"),
        sample("q", 0, "x"),
        sample("q", 1, "y"),
    ]
    samples, out = write(tmp_path / "samples.jsonl", *lines), tmp_path / "out.jsonl"
    result = score(samples, out, Lengths())
    scored = read(out)
    assert [line["quality"] for line in scored] == [0.25, 0.625, 0.625, 0.5, 0.5]
    assert scored[0] == lines[0] | {
        "quality": 0.25,
        "win_probability": 0.25,
        "judge": "lengths",
        "judge_features": {"length": 4.0},
    }
    assert (result.num_samples, result.num_comparisons, result.num_missed) == (5, 4, 0)
    wins = tmp_path / "wins.jsonl"
    score(samples, wins, Lengths(counts_wins=True))
    assert [line["quality"] for line in read(wins)] == [0.0, 0.75, 0.75, 0.5, 0.5]
    assert [line["win_probability"] for line in read(wins)] == [0.25, 0.625, 0.625, 0.5, 0.5]


def test_references_are_what_samples_are_compared_with(tmp_path: Path) -> None:
    """Guards the other opponent: one comparison a sample, its probability as it is."""
    samples = write(tmp_path / "samples.jsonl", sample("p", 0, "a"), sample("p", 1, "bbb"), sample("q", 0, "x"))
    references = {"p": Answer("rr"), "q": Answer("r")}
    judge = Lengths(counts_wins=True)
    score(samples, tmp_path / "out.jsonl", judge, references=references)
    assert judge.asked == [("a", "rr"), ("bbb", "rr"), ("x", "r")]
    assert [line["quality"] for line in read(tmp_path / "out.jsonl")] == [0.25, 0.75, 0.5]
    with pytest.raises(InputError, match="prompt 'q' has no reference answer"):
        score(samples, tmp_path / "other.jsonl", judge, references={"p": Answer("rr")})
    with pytest.raises(InputError, match="prompt 'q' has one sample"):
        score(samples, tmp_path / "other.jsonl", judge)
    assert not (tmp_path / "other.jsonl").exists()


def test_a_judge_that_breaks_loses_nothing_and_scoring_goes_on(tmp_path: Path) -> None:
    """Guards hours of judging against one failure: what was judged stays, and is not judged again."""
    good = [sample(f"p{n}", k, "a" * (k + 1)) for n in range(3) for k in range(2)]
    bad = [sample("bad", 0, "no!"), sample("bad", 1, "no")]
    out = tmp_path / "out.jsonl"
    with pytest.raises(PastaError, match="gone"):
        score(write(tmp_path / "s.jsonl", *good, *bad), out, Lengths(), prompts_at_once=1)
    assert len(read(out)) == 6
    out.write_text(out.read_text(encoding="utf-8")[:-20], encoding="utf-8")  # and a crash in the last line
    judge = Lengths()
    mended = [line | {"text": "yes"} if line["id"] == "bad#0" else line for line in (*good, *bad)]
    result = score(write(tmp_path / "s.jsonl", *mended), out, judge, prompts_at_once=1)
    assert (result.num_before, result.num_samples) == (5, 3)
    assert len(judge.asked) == 2
    assert sorted(line["id"] for line in read(out)) == sorted(str(line["id"]) for line in mended)
    assert score(tmp_path / "s.jsonl", out, judge).num_comparisons == 0


def test_a_sample_added_later_meets_those_that_are_scored(tmp_path: Path) -> None:
    """Guards a tenth sample that would otherwise have nobody to be compared with."""
    first = [sample("p", 0, "a"), sample("p", 1, "bbb")]
    out = tmp_path / "out.jsonl"
    score(write(tmp_path / "s.jsonl", *first), out, Lengths())
    score(write(tmp_path / "s.jsonl", *first, sample("p", 2, "cc")), out, Lengths())
    assert [(line["id"], line["quality"]) for line in read(out)] == [("p#0", 0.25), ("p#1", 0.75), ("p#2", 0.5)]


def test_samples_without_a_verdict_are_left_for_another_try(tmp_path: Path) -> None:
    """Guards against a made-up quality: misses are counted, and a sample with no other comparison is not written."""
    samples = write(tmp_path / "s.jsonl", sample("p", 0, "a?"), sample("p", 1, "b"), sample("p", 2, "cc"))
    result = score(samples, tmp_path / "out.jsonl", Lengths())
    assert (result.num_missed, result.num_unscored, result.num_samples) == (2, 1, 2)
    assert [(line["id"], line["quality"]) for line in read(tmp_path / "out.jsonl")] == [("p#1", 0.25), ("p#2", 0.75)]


def test_two_judges_are_not_mixed(tmp_path: Path) -> None:
    """Guards a file whose qualities mean different things."""
    samples, out = write(tmp_path / "s.jsonl", sample("p", 0, "a"), sample("p", 1, "b")), tmp_path / "out.jsonl"
    score(samples, out, Lengths())
    other = Lengths()
    other.name = "other"
    with pytest.raises(InputError, match="judged by 'lengths', not 'other'"):
        score(samples, out, other)


@pytest.mark.parametrize("size", range(2, 12))
@pytest.mark.parametrize("num", [1, 2, 3, 4, 7, None])
def test_everyone_meets_as_many_others(size: int, num: int | None) -> None:
    """Guards an unfair draw: nobody meets the same one twice, and all meet as many."""
    samples = [Sample.model_validate(sample("p", k, "x")) for k in range(size)]
    met = [frozenset((a.id, b.id)) for a, b in opponents(samples, num)]
    assert len(met) == len(set(met))
    assert all(len(pair) == 2 for pair in met)
    counts = {sum(s.id in pair for pair in met) for s in samples}
    assert len(counts) == 1
    wanted = size - 1 if num is None else min(num, size - 1)
    assert counts.pop() - wanted in (0, 1)


def test_win_rate_by_hand() -> None:
    """Guards the mean, its error, the share preferred, and that misses are counted and left out."""
    texts = [("aa", "b"), ("a", "b"), ("a", "bb"), ("a?", "b")]
    found = win_rate(Lengths(), [Comparison(Question("q"), Answer(a), Answer(b)) for a, b in texts])
    assert (found.num, found.num_missed, found.win_rate, found.share_preferred) == (3, 1, 0.5, 0.5)
    assert found.standard_error == pytest.approx(0.25 / math.sqrt(3))
    assert found.share_longer == 0.5, "all texts are of one word"
    assert win_rate(Lengths(), []).win_rate is None


def test_answers_are_read_from_reports_and_answers(tmp_path: Path) -> None:
    """Guards the files that `generate --out` writes, and those of answers, and which of them were cut."""
    path = write(
        tmp_path / "a.jsonl",
        {"id": "p", "text": "t", "finish_reason": "length", "usage": {}},
        {"id": "q", "output": "o", "finished": False},
        {"id": "r#1", "prompt_id": "r", "text": "s", "finish_reason": "stop"},
    )
    answers = read_answers(path)
    assert answers == {"p": Answer("t", False), "q": Answer("o", False), "r": Answer("s", True)}
    questions = read_questions(write(tmp_path / "p.jsonl", {"id": "q", "instruction": "i", "input": "n"}))
    (pair,) = pair_up(questions, answers, {"q": Answer("z")})
    assert pair == Comparison(Question("i", "n"), Answer("o", False), Answer("z"))
    with pytest.raises(InputError, match="no prompt has two answers"):
        pair_up(questions, answers, {"p": Answer("z")})
    with pytest.raises(InputError, match="line 1: a text is expected in field 'text' or 'output'"):
        read_answers(write(tmp_path / "b.jsonl", {"id": "p"}))
    with pytest.raises(InputError, match="line 2: a second answer to 'p'"):
        read_answers(write(tmp_path / "b.jsonl", {"id": "p", "text": ""}, {"id": "p", "text": ""}))
    with pytest.raises(InputError, match=r"line 1: speedup"):
        read_samples(write(tmp_path / "b.jsonl", {**sample("p", 0, "x"), "speedup": "fast"}))


def run(*args: str) -> int:
    try:
        main(["train", *args])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_the_commands_judge_with_the_shipped_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards the commands from their options to their JSON: the clean answer wins, whichever way it is asked."""
    monkeypatch.setattr(judge_features, "load_embedding", lambda _: embed)
    loop, clean = "Eat an apple a day. " * 12, "Eat an apple a day, sleep well, and see your friends now and then."
    samples = write(tmp_path / "s.jsonl", sample("p", 0, loop), sample("p", 1, clean))
    out = tmp_path / "out.jsonl"
    assert run("score", str(samples), "--out", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 2
    assert [line["quality"] for line in read(out)] == [0.0, 1.0]
    assert read(out)[0]["judge_features"]["repetition"] > 0.8

    prompts = write(tmp_path / "p.jsonl", {"id": "p", "instruction": "say"})
    first = write(tmp_path / "a.jsonl", {"id": "p", "text": clean, "finish_reason": "stop"})
    second = write(tmp_path / "b.jsonl", {"id": "p", "text": loop, "finish_reason": "stop"})
    assert run("judge", str(first), str(second), "--prompts", str(prompts), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["judge"], found["num"], found["share_preferred"]) == ("local", 1, 1.0)
    assert 0.5 < found["win_rate"] < 1

    assert run("score", str(samples), "--out", str(samples)) == 2
    assert run("score", str(samples), "--out", str(out), "--judge", "llm") == 2
    assert "--judge llm needs --base-url and --judge-model" in capsys.readouterr().err


def test_the_commands_calibrate_a_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards calibration from a file of people's preferences to a judge that `judge` can use."""
    monkeypatch.setattr(judge_features, "load_embedding", lambda _: embed)
    pairs = write(
        tmp_path / "pairs.jsonl",
        *(
            {"id": str(n), "instruction": f"ask {n}", "output_1": "word " * n, "output_2": "", "human": [1]}
            for n in range(1, 30)
        ),
    )
    weights, kept = tmp_path / "judge.json", tmp_path / "features.jsonl"
    options = [str(pairs), "--out", str(weights), "--features", str(kept), "--no-likelihood"]
    assert run("calibrate-judge", *options) == 0
    assert "judge 100.0%, longer 100.0%" in capsys.readouterr().out
    assert json.loads(weights.read_text(encoding="utf-8"))["weights"]["empty"] < 0
    assert len(read(kept)) == 58
