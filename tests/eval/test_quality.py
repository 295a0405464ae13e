"""Quality: verdicts that are kept, misses that are counted, opponents, and what a judge is worth."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pasta_ray.errors import InputError
from pasta_ray.eval.answers import Answer, group_answers
from pasta_ray.eval.judging import AT_ONCE, RememberingJudge, check_quality, load_judge
from pasta_ray.eval.plan import QualityPlan
from pasta_ray.eval.prompts import Prompt
from pasta_ray.eval.quality import Contest, judge_quality
from pasta_ray.train.endpoint import EndpointError
from pasta_ray.train.judges.base import Answer as Text
from pasta_ray.train.judges.base import Comparison, Question
from tests.eval.reports import LOOP, answer, report
from tests.train.endpoints import free_port, serving


class FakeJudge:
    """Likes "good" texts; says nothing of "odd" ones; is gone after ``num`` comparisons."""

    name, counts_wins = "fake", False

    def __init__(self, num: int = 10**6) -> None:
        self.num_left = num
        self.num_asked = 0

    def compare(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        if self.num_left < len(comparisons):
            raise EndpointError("the endpoint cannot be reached")
        self.num_left -= len(comparisons)
        self.num_asked += len(comparisons)
        return [
            None if "odd" in c.first.text else 0.5 + 0.4 * (("good" in c.first.text) - ("good" in c.second.text))
            for c in comparisons
        ]

    def features(self, question: Question, answer: Text) -> dict[str, float]:  # noqa: ARG002
        return {}

    def costs(self) -> dict[str, float]:
        return {}


def pairs(num: int) -> list[Comparison]:
    return [Comparison(Question(f"q{n}"), Text("good"), Text("bad")) for n in range(num)]


def test_a_verdict_is_asked_for_once_whatever_happens(tmp_path: Path) -> None:
    """Guards what was paid for against an endpoint that goes away, and a last line that was half written."""
    path, num = tmp_path / "v.jsonl", 3 * AT_ONCE
    with pytest.raises(EndpointError):
        RememberingJudge(FakeJudge(2 * AT_ONCE), "i", path).compare(pairs(num))
    path.write_bytes(path.read_bytes() + b'{"id": "half')
    judge = FakeJudge()
    came: list[int] = []
    remembering = RememberingJudge(judge, "i", path, came.append)
    assert remembering.compare(pairs(num)) == [0.9] * num
    assert remembering.compare(pairs(num)) == [0.9] * num
    assert (judge.num_asked, came) == (AT_ONCE, [AT_ONCE])
    other = FakeJudge()
    changed = [Comparison(Question("q0"), Text("good", finished=False), Text("bad")), pairs(1)[0]]
    RememberingJudge(other, "i", path).compare(changed)
    assert other.num_asked == 1, "an answer that was cut is another answer"
    RememberingJudge(other, "another judge", path).compare(pairs(1))
    assert other.num_asked == 2


def contest(against: str, *answers: Answer, num: int = 12) -> Contest:
    prompts = [Prompt(id=f"p{n}", instruction=f"i{n}", reference_output="good" if n % 2 else "bad") for n in range(num)]
    plan = QualityPlan.model_validate({"against": against})
    return Contest.of(group_answers(answers), prompts, "base", plan)


def test_answers_meet_the_baselines_and_misses_are_counted(tmp_path: Path) -> None:
    given = [answer(f"p{n}", "base", report(text="bad")) for n in range(12)]
    given += [answer(f"p{n}", "own", report(text="good" if n < 6 else "bad")) for n in range(11)]
    given += [answer("p11", "own", report(text="odd"))]
    found = contest("baseline", *given)
    assert found.contestants == ["own"]
    quality = judge_quality(found, "own", RememberingJudge(FakeJudge(), "i", tmp_path / "v.jsonl"), ())
    assert (quality.opponent, quality.all.num, quality.all.num_missed) == ("base", 11, 1)
    assert quality.all.win_rate == pytest.approx((6 * 0.9 + 5 * 0.5) / 11)
    assert quality.all.length_controlled is not None
    assert quality.all.points == pytest.approx(100 * (quality.all.length_controlled.win_rate - 0.5))


def test_clean_answers_are_judged_apart(tmp_path: Path) -> None:
    """Guards a win rate that rests on the other's loops."""
    given = [answer("p0", "base", report(text=LOOP)), answer("p0", "own", report(text="good"))]
    given += [answer("p1", "base", report(text="bad")), answer("p1", "own", report(text="bad"))]
    given += [answer("p2", "base", report(text="bad")), answer("p2", "own", report(text="good", reason="length"))]
    given += [answer("p3", "base", report()), answer("p3", "own", None)]
    judge = RememberingJudge(FakeJudge(), "i", tmp_path / "v.jsonl")
    quality = judge_quality(contest("baseline", *given), "own", judge, ())
    assert (quality.all.num, quality.clean.num) == (3, 1)
    assert quality.clean.win_rate == 0.5
    assert quality.clean.points == pytest.approx(0.0)
    assert quality.clean.length_controlled is None, "one verdict is too few to fit anything"


def test_against_references_points_are_those_over_the_baseline(tmp_path: Path) -> None:
    """Guards points that compare a system on some prompts with the baseline on others."""
    given = [answer(f"p{n}", "base", report(text="bad")) for n in range(4)]
    given += [answer(f"p{n}", "own", report(text="good")) for n in range(2)]
    judge = RememberingJudge(FakeJudge(), "i", tmp_path / "v.jsonl")
    found = contest("reference", *given)
    assert found.contestants == ["base", "own"]
    own, base = judge_quality(found, "own", judge, ()), judge_quality(found, "base", judge, ())
    assert own.all.win_rate == pytest.approx((0.9 + 0.5) / 2)
    assert own.all.points == pytest.approx(100 * ((0.9 + 0.5) / 2 - (0.5 + 0.1) / 2))
    assert base.all.points == 0
    prompts = [Prompt(id="p0", instruction="i")]
    with pytest.raises(InputError, match="'p0' has no reference_output"):
        Contest.of({}, prompts, "base", QualityPlan(against="reference"))


def test_what_is_wrong_with_a_judge_is_known_before_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards hours of answers that nobody can judge."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    llm = {"judge": "llm", "base_url": "http://x/v1", "judge_model": "m"}
    for settings, message in (
        ({"weights": "nowhere.json"}, "quality.weights: nowhere.json: no such file"),
        ({"gamed": "nowhere.csv"}, "quality.gamed: nowhere.csv"),
        (llm | {"human_pairs": "nowhere.jsonl"}, "quality.human_pairs: nowhere.jsonl"),
        (llm | {"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        (llm | {"base_url": "x"}, "base_url is 'x'"),
        ({"against": "reference"}, "'p0' has no reference_output"),
    ):
        with pytest.raises(InputError, match=message):
            check_quality(QualityPlan.model_validate(settings), [Prompt(id="p0", instruction="i")])


def test_an_llm_judges_agreement_with_people_is_measured_once(tmp_path: Path) -> None:
    """Guards a judge named without what it is worth, and human pairs that are paid for at every report."""
    human = [
        {"id": str(n), "instruction": f"i{n}", "output_1": "first", "output_2": "second one", "human": [1 + n % 2]}
        for n in range(8)
    ]
    path = tmp_path / "human.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in human), encoding="utf-8")
    with serving(
        lambda chat: "A" if chat[-1]["content"].index("first") < chat[-1]["content"].index("second") else "B"
    ) as stub:
        settings = {"judge": "llm", "base_url": stub.base_url, "judge_model": "m", "max_retries": 0}
        plan = QualityPlan.model_validate(settings | {"human_pairs": str(path), "human_limit": 4})
        _, card = load_judge(plan, tmp_path / "v.jsonl")
        assert (card.name, card.human_agreement, card.num_human_pairs) == ("llm:m", 1.0, 4)
        assert card.longer_agreement == 0.0
        asked = len(stub.requests)
        load_judge(plan, tmp_path / "v.jsonl")
        assert len(stub.requests) == asked == 8
        _, unknown = load_judge(QualityPlan.model_validate(settings), tmp_path / "v.jsonl")
        assert (unknown.human_agreement, unknown.num_human_pairs) == (None, 0)
    nobody = {"base_url": f"http://127.0.0.1:{free_port()}/v1", "human_pairs": str(path)}
    with pytest.raises(EndpointError, match="cannot be reached"):
        load_judge(QualityPlan.model_validate(settings | nobody), tmp_path / "other.jsonl")
