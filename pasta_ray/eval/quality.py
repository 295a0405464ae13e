"""Quality: whose answers a judge prefers, with and without length, with and without answers that were cut or loop.

One answer a prompt is judged, that of the first repetition: greedy answers are all alike, and several answers to one
prompt are no independent evidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pasta_ray.eval.answers import Answer, BySystem
from pasta_ray.eval.figures import LengthControlled, Preference, Quality
from pasta_ray.eval.judging import RememberingJudge, check_quality
from pasta_ray.eval.lc import Gamed, Judged, length_controlled
from pasta_ray.eval.plan import QualityPlan
from pasta_ray.eval.prompts import Prompt
from pasta_ray.train.judges.base import Answer as Text
from pasta_ray.train.judges.base import Comparison
from pasta_ray.train.judges.winrate import win_rate

REFERENCE = "reference"


@dataclass(frozen=True)
class Contest:
    """Who is judged: each system's first answers, all prompts, and what they are compared with."""

    prompts: Mapping[str, Prompt]
    answers: Mapping[str, Mapping[str, Answer]]
    baseline: str
    against: str

    @classmethod
    def of(cls, systems: BySystem, prompts: Sequence[Prompt], baseline: str, plan: QualityPlan) -> "Contest":
        """Raises InputError where answers are to be compared with references, and a prompt has none."""
        check_quality(plan, prompts)
        first = {
            name: {id_: several[0] for id_, several in answers.items() if several[0].report}
            for name, answers in systems.items()
        }
        return cls({prompt.id: prompt for prompt in prompts}, first, baseline, plan.against)

    @property
    def opponent(self) -> str:
        return REFERENCE if self.against == REFERENCE else self.baseline

    @property
    def contestants(self) -> list[str]:
        """Nobody is compared with itself."""
        return [name for name in self.answers if self.against == REFERENCE or name != self.baseline]

    def shared(self, name: str, *, clean: bool) -> list[str]:
        """Prompts that the system and the baseline have answered; only those whose answers are ``clean``."""
        own, theirs = self.answers[name], self.answers.get(self.baseline, {})
        both = [id_ for id_ in self.prompts if id_ in own and id_ in theirs]
        return [id_ for id_ in both if not clean or (own[id_].is_clean and theirs[id_].is_clean)]

    def comparisons(self, name: str, prompts: Sequence[str]) -> list[Comparison]:
        return [self._comparison(name, id_) for id_ in prompts]

    def _comparison(self, name: str, id_: str) -> Comparison:
        prompt = self.prompts[id_]
        if self.against == REFERENCE:
            assert prompt.reference_output is not None
            return Comparison(prompt.question, _text(self.answers[name][id_]), Text(prompt.reference_output))
        return Comparison(prompt.question, _text(self.answers[name][id_]), _text(self.answers[self.baseline][id_]))


def judge_quality(contest: Contest, name: str, judge: RememberingJudge, gamed: Sequence[Gamed]) -> Quality:
    """Raises EndpointError where the judge cannot be asked; what it has said before is kept by the judge."""
    return Quality(
        opponent=contest.opponent,
        all=_prefer(contest, name, contest.shared(name, clean=False), judge, gamed),
        clean=_prefer(contest, name, contest.shared(name, clean=True), judge, gamed),
    )


def _prefer(
    contest: Contest, name: str, prompts: Sequence[str], judge: RememberingJudge, gamed: Sequence[Gamed]
) -> Preference:
    found = _preference(contest, name, prompts, judge, gamed)
    if found.win_rate is None:
        return found
    controlled = found.length_controlled
    if contest.against != REFERENCE:
        own, before = (controlled.win_rate if controlled else found.win_rate), 0.5
    else:
        baseline = _preference(contest, contest.baseline, prompts, judge, gamed)
        both = (controlled, baseline.length_controlled)
        own, before = _rates(both, (found.win_rate, baseline.win_rate or 0.0))
    return found.model_copy(update={"points": 100 * (own - before)})


def _rates(
    controlled: tuple[LengthControlled | None, LengthControlled | None], plain: tuple[float, float]
) -> tuple[float, float]:
    """Of system and baseline, length-controlled where both are."""
    own, before = controlled
    return (own.win_rate, before.win_rate) if own and before else plain


def _preference(
    contest: Contest, name: str, prompts: Sequence[str], judge: RememberingJudge, gamed: Sequence[Gamed]
) -> Preference:
    comparisons = contest.comparisons(name, prompts)
    verdicts = judge.compare(comparisons)
    plain = win_rate(judge, comparisons)  # which asks again, and the judge remembers
    judged = [
        Judged(verdict, len(pair.second.text) - len(pair.first.text), contest.prompts[id_].instruction_difficulty)
        for id_, pair, verdict in zip(prompts, comparisons, verdicts, strict=True)
        if verdict is not None
    ]
    return Preference(
        num=plain.num,
        num_missed=plain.num_missed,
        win_rate=plain.win_rate,
        standard_error=plain.standard_error,
        share_preferred=plain.share_preferred,
        share_longer=plain.share_longer,
        length_controlled=length_controlled(judged, gamed),
    )


def _text(answer: Answer) -> Text:
    assert answer.report is not None
    return Text(answer.report.text, answer.is_finished)
