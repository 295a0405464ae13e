"""The shapes of an evaluation's figures, as `report.json` holds them. None stands where there is nothing to measure."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pasta_ray.eval.folder import Sitting, Told


class Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Figures):
    """A geometric mean over prompts, with the 95 % confidence interval of a bootstrap over prompts."""

    value: float
    low: float
    high: float


class Percentiles(Figures):
    p50: float
    p90: float
    p99: float


class Anatomy(Figures):
    """Model steps of an answer, on average over answers: with no body open, with one, with more. Only the last are
    what parallel decoding lives on."""

    no_body: float
    one_body: float
    several_bodies: float


class LengthError(Figures):
    """How far predicted lengths of bodies were off. ``median_tokens``: of the distance. ``median_share``: of that
    relative to the true length. ``share_right``: predictions that are the length in the next ten. ``share_short``:
    bodies that grew longer than predicted."""

    num_bodies: int
    median_tokens: float
    median_share: float
    share_right: float
    share_short: float


class Speed(Figures):
    """A system against the baseline, over the prompts that both have answered. Ratios above 1 mean that the system is
    the faster one.

    ``wall_speedup``: seconds of a whole answer. ``token_speedup``: seconds a visible token, so that a shorter answer is
    no gain. ``step_speedup``: model steps that had to follow one another. ``theoretical_speedup`` is the system's own:
    steps that its text would have taken one after the other, over those that it took. ``realised_over_theoretical``:
    what of that the clock shows, token_speedup over the ratio of both systems' theoretical speedups. ``tag_share``: of
    all tokens decoded, those of tags, topics and lengths (of sot, of the skeleton). Latencies are in seconds.
    """

    num_prompts: int
    wall_speedup: Interval | None = None
    token_speedup: Interval | None = None
    step_speedup: Interval | None = None
    theoretical_speedup: Interval | None = None
    realised_over_theoretical: float | None = None
    share_slower: float | None = None
    latency_s: Percentiles | None = None
    ttft_s: Percentiles | None = None
    ms_per_step: float | None = None
    visible_tokens: float | None = None
    tag_share: float | None = None
    anatomy: Anatomy | None = None
    length_error: LengthError | None = None


class Views(Figures):
    """Each figure twice: over ``all`` prompts, and over the ``clean`` ones, where no answer of system or baseline was
    cut off or repeats itself."""

    all: Speed
    clean: Speed


class Counts(Figures):
    """Answers of a system. ``finished`` ended by themselves, ``cut`` ran into the limit of tokens, ``loops`` repeat
    themselves (finished or cut), ``refused`` were not answered. ``missing`` have not been run yet."""

    answers: int
    finished: int
    cut: int
    loops: int
    refused: int
    missing: int
    bodies: int
    bodies_cut: int
    violations: int


class JudgeCard(Figures):
    """Who judged, and how often that judge sides with the majority of people (None where nobody has measured it),
    beside one that always takes the longer answer."""

    name: str
    what_it_is: str
    human_agreement: float | None
    num_human_pairs: int
    longer_agreement: float | None


class LengthControlled(Figures):
    """AlpacaEval 2's win rate at equal length: of the fitted model, with its coefficients."""

    win_rate: float
    num: int
    length: float
    difficulty: float | None
    intercept: float
    regularised: bool


class Preference(Figures):
    """A system's answers against the opponent's. ``win_rate``: mean probability that the judge prefers the system's,
    over ``num`` verdicts; ``num_missed`` comparisons got none. ``points``: win rate less the baseline's, in
    percentage points, length-controlled where that was computed."""

    num: int
    num_missed: int
    win_rate: float | None
    standard_error: float | None
    share_preferred: float | None
    share_longer: float | None
    length_controlled: LengthControlled | None = None
    points: float | None = None


class Quality(Figures):
    """``opponent`` is the baseline's name, or ``reference``. ``clean``: over the prompts where no answer of system or
    baseline was cut off or repeats itself."""

    opponent: str
    all: Preference
    clean: Preference


class Perplexity(Figures):
    """Of a system's answers under the model without adapter: over the tokens of all, and of its clean ones."""

    all: float | None
    clean: float | None


class SystemReport(Figures):
    """All figures of one system. ``same_text``: share of its answers that are another system's letter by letter."""

    counts: Counts
    speed: Views
    by_category: dict[str, Views]
    same_text: dict[str, float]
    quality: Quality | None = None
    perplexity: Perplexity | None = None


class LoadPoint(Figures):
    """A system under load: ``concurrency`` requests at once, each followed by the next as soon as its answer is there.
    ``tokens_per_s``: visible tokens of all answers over the seconds of it all. Refused requests do not count."""

    id: str
    system: str
    concurrency: int
    num_answers: int
    tokens_per_s: float
    latency_s: Percentiles
    ttft_s: Percentiles


class EvalReport(Figures):
    """`report.json`. ``complete``: every answer of the plan is there, and its load. ``judge_error``: why there is no
    quality, or not of all systems, although the plan asks for it."""

    format: Literal[1] = 1
    version: str
    told: Told
    sittings: list[Sitting]
    baseline: str
    num_prompts: int
    complete: bool
    judge: JudgeCard | None = None
    judge_costs: dict[str, float] = {}
    judge_error: str = ""
    systems: dict[str, SystemReport]
    load: list[LoadPoint] = []
