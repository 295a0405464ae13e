"""Judges with a memory: a verdict that was given is on disk, and never asked for again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pasta_ray.errors import InputError
from pasta_ray.eval.figures import JudgeCard
from pasta_ray.eval.plan import QualityPlan
from pasta_ray.eval.prompts import Prompt, evenly
from pasta_ray.train.endpoint import EndpointConfig
from pasta_ray.train.jsonl import read_appended, to_line
from pasta_ray.train.judges.base import Answer, Comparison, Judge, Question
from pasta_ray.train.judges.calibration import agreement, read_pairs
from pasta_ray.train.judges.llm import LlmJudge
from pasta_ray.train.judges.local import WHAT_IT_IS, LocalJudge

AT_ONCE = 16  # comparisons between two writes of the file

Say = Callable[[int], None]  # takes the number of verdicts that have just come


class RememberingJudge:
    """A judge whose verdicts are appended to ``path`` as they come, misses too, and taken from there. A verdict is
    known by judge, question and both answers, so that what changes one of them is judged anew."""

    counts_wins = False

    def __init__(self, judge: Judge, identity: str, path: Path, say: Say = lambda _: None) -> None:
        self._judge, self._identity, self._path, self._say = judge, identity, path, say
        self._known: dict[str, float | None] = {line["id"]: line["verdict"] for line in read_appended(path)}

    @property
    def name(self) -> str:
        return self._judge.name

    def compare(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        keys = [self._key(comparison) for comparison in comparisons]
        todo = {key: comparison for key, comparison in zip(keys, comparisons, strict=True) if key not in self._known}
        names = list(todo)
        with self._path.open("a", encoding="utf-8") as file:
            for start in range(0, len(names), AT_ONCE):
                part = names[start : start + AT_ONCE]
                verdicts = self._judge.compare([todo[key] for key in part])
                for key, verdict in zip(part, verdicts, strict=True):
                    self._known[key] = verdict
                    file.write(to_line({"id": key, "judge": self.name, "verdict": verdict}))
                file.flush()
                self._say(len(part))
        return [self._known[key] for key in keys]

    def features(self, question: Question, answer: Answer) -> dict[str, float]:
        return self._judge.features(question, answer)

    def costs(self) -> dict[str, float]:
        return self._judge.costs()

    def _key(self, comparison: Comparison) -> str:
        question, first, second = comparison.question, comparison.first, comparison.second
        parts: list[Any] = [self._identity, question.instruction, question.input, question.system]
        parts += [first.text, first.finished, second.text, second.finished]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def load_judge(plan: QualityPlan, path: Path, say: Say = lambda _: None) -> tuple[RememberingJudge, JudgeCard]:
    """The judge that the plan names, and what it is worth. Raises InputError, and EndpointError where its agreement
    with people is to be measured and nobody answers."""
    if plan.judge == "local":
        local = LocalJudge.load(plan.weights)
        identity = f"{local.name}|{json.dumps(local.weights.weights, sort_keys=True)}|{local.weights.embedding}"
        return RememberingJudge(local, identity, path, say), _card(local.name, WHAT_IT_IS, local.weights.agreement)
    asked = RememberingJudge(LlmJudge(_endpoint(plan)), f"llm:{plan.judge_model}", path, say)
    return asked, _card(asked.name, "A language model behind an endpoint, asked in both orders.", _measure(asked, plan))


def check_quality(plan: QualityPlan, prompts: Sequence[Prompt]) -> None:
    """What can be known to be wrong before hours are spent on answers: files, the endpoint's key, references. Raises
    InputError."""
    for name in ("weights", "human_pairs", "gamed"):
        path: Path | None = getattr(plan, name)
        if path is not None and not path.is_file():
            raise InputError(f"quality.{name}: {path}: no such file")
    if plan.judge == "llm":
        _endpoint(plan).api_key()
    if plan.against == "reference":
        for prompt in prompts:
            if prompt.reference_output is None:
                raise InputError(f"prompt {prompt.id!r} has no reference_output to compare answers with")


def _endpoint(plan: QualityPlan) -> EndpointConfig:
    assert plan.base_url
    assert plan.judge_model
    return EndpointConfig(
        plan.base_url,
        plan.judge_model,
        api_key_env=plan.api_key_env,
        concurrency=plan.concurrency,
        max_retries=plan.max_retries,
    )


def _measure(judge: RememberingJudge, plan: QualityPlan) -> list[dict[str, Any]]:
    """Its agreement with the majority of people on the plan's pairs; none where the plan names no pairs."""
    if plan.human_pairs is None:
        return []
    pairs = evenly(read_pairs(plan.human_pairs), plan.human_limit)
    if not pairs:
        raise InputError(f"{plan.human_pairs}: no pairs")
    return agreement(pairs, judge.compare([pair.comparison for pair in pairs]))


def _card(name: str, what_it_is: str, rows: Sequence[dict[str, Any]]) -> JudgeCard:
    overall = next((row for row in rows if row["source"] == "all"), None)
    return JudgeCard(
        name=name,
        what_it_is=what_it_is,
        human_agreement=overall["judge"] if overall else None,
        num_human_pairs=overall["pairs"] if overall else 0,
        longer_agreement=overall["longer"] if overall else None,
    )
