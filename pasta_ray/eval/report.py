"""From an evaluation's folder to its report: all figures, computed anew from the answers each time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pasta_ray import __version__
from pasta_ray.errors import InputError, PastaError
from pasta_ray.eval.answers import BySystem, group_answers, read_answers
from pasta_ray.eval.figures import EvalReport, JudgeCard, LoadPoint, Perplexity, Quality, SystemReport, Views
from pasta_ray.eval.folder import EvalFolder, Sitting, Told
from pasta_ray.eval.judging import Say, load_judge
from pasta_ray.eval.lc import read_gamed
from pasta_ray.eval.load import bursts
from pasta_ray.eval.perplexity import perplexity, score_answers
from pasta_ray.eval.plan import EvalPlan
from pasta_ray.eval.prompts import Prompt, load_prompts
from pasta_ray.eval.quality import Contest, judge_quality
from pasta_ray.eval.speed import count_answers, same_texts, speed_views


@dataclass(frozen=True)
class Found:
    """What a folder holds: what it was told, its prompts, and the answers so far."""

    told: Told
    prompts: tuple[Prompt, ...]
    systems: BySystem

    @classmethod
    def read(cls, folder: EvalFolder) -> "Found":
        """Raises InputError with file and line."""
        told = folder.read_told()
        prompts = load_prompts(str(folder.prompts)).prompts
        asked = {prompt.id for prompt in prompts}
        kept = read_answers(folder.answers) if folder.answers.exists() else []
        answers = group_answers(answer for answer in kept if answer.prompt_id in asked)
        return cls(told, prompts, {system.name: answers.get(system.name, {}) for system in told.plan.systems})

    @property
    def plan(self) -> EvalPlan:
        return self.told.plan

    @property
    def num_wanted(self) -> int:
        """Answers of each system."""
        return len(self.prompts) * self.plan.repetitions

    @property
    def categories(self) -> dict[str, list[str]]:
        """Prompts' ids by category; none where all are of one."""
        found: dict[str, list[str]] = {}
        for prompt in self.prompts:
            found.setdefault(prompt.group or "none", []).append(prompt.id)
        return dict(sorted(found.items())) if len(found) > 1 else {}


def speed_report(found: Found, sittings: Sequence[Sitting], load: Sequence[LoadPoint] = ()) -> EvalReport:
    """All that needs no judge. ``load``: what has been measured of it."""
    same = same_texts(found.systems)
    systems = {name: _system(found, name, same[name]) for name in found.systems}
    return EvalReport(
        version=__version__,
        told=found.told,
        sittings=list(sittings),
        baseline=found.plan.baseline_name,
        num_prompts=len(found.prompts),
        complete=all(system.counts.missing == 0 for system in systems.values())
        and len(load) == len(bursts(found.plan)),
        systems=systems,
        load=list(load),
    )


def _system(found: Found, name: str, same: Mapping[str, float]) -> SystemReport:
    own, baseline = found.systems[name], found.systems[found.plan.baseline_name]
    answers = [answer for several in own.values() for answer in several]

    def views(prompts: Sequence[str]) -> Views:
        return speed_views(own, baseline, prompts, found.plan.seed)

    return SystemReport(
        counts=count_answers(answers, found.num_wanted),
        speed=views([prompt.id for prompt in found.prompts]),
        by_category={category: views(prompts) for category, prompts in found.categories.items()},
        same_text=dict(same),
    )


@dataclass(frozen=True)
class Judgement:
    """Quality by system. ``error`` is what ended it early; what was judged by then is here, and in the folder."""

    judge: JudgeCard | None
    costs: Mapping[str, float]
    quality: Mapping[str, Quality]
    perplexity: Mapping[str, Perplexity]
    error: PastaError | None = None

    def added_to(self, report: EvalReport) -> EvalReport:
        systems = {
            name: system.model_copy(update={"quality": self.quality.get(name), "perplexity": self.perplexity.get(name)})
            for name, system in report.systems.items()
        }
        update = {"judge": self.judge, "judge_costs": dict(self.costs), "judge_error": str(self.error or "")}
        return report.model_copy(update={**update, "systems": systems})


def judge_answers(found: Found, folder: EvalFolder, say: Say = lambda _: None) -> Judgement:
    """Quality as the plan wants it judged; verdicts are kept in ``folder``."""
    plan = found.plan.quality
    assert plan is not None, "the plan has no judge"
    card, costs = None, dict[str, float]()
    quality: dict[str, Quality] = {}
    perplexities: dict[str, Perplexity] = {}
    try:
        contest = Contest.of(found.systems, found.prompts, found.plan.baseline_name, plan)
        gamed = read_gamed(plan.gamed) if plan.gamed else []
        judge, card = load_judge(plan, folder.verdicts, say)
        for name in contest.contestants:
            quality[name] = judge_quality(contest, name, judge, gamed)
            costs = judge.costs()
        if plan.perplexity:
            perplexities = _perplexities(found, contest, folder, say)
    except PastaError as error:
        return Judgement(card, costs, quality, perplexities, error)
    return Judgement(card, costs, quality, perplexities)


def _perplexities(found: Found, contest: Contest, folder: EvalFolder, say: Say) -> dict[str, Perplexity]:
    """Under the first model that runs here, without an adapter. Raises InputError where all are an endpoint's."""
    here = next((system for system in found.plan.systems if not system.base_url), None)
    if here is None:
        raise InputError("quality.perplexity needs a system whose model runs here: all have a base_url")
    config = found.plan.engine(here.model_copy(update={"adapter": None}))
    answers = [answer for own in contest.answers.values() for answer in own.values()]
    scored = score_answers(answers, contest.prompts, config, folder.perplexities, say)
    return {
        name: Perplexity(
            all=perplexity([scored[answer.id] for answer in own.values()]),
            clean=perplexity([scored[answer.id] for answer in own.values() if answer.is_clean]),
        )
        for name, own in contest.answers.items()
    }
