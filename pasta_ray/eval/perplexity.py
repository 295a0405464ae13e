"""How likely the model without adapter finds the answers: a check that needs no judge, and is blind to truth.

Loops are likely: give it with and without them.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import resolve_model
from pasta_ray.eval.answers import Answer
from pasta_ray.eval.prompts import Prompt
from pasta_ray.train.jsonl import read_appended, to_line
from pasta_ray.train.judges.likelihood import answer_log_probs
from pasta_ray.train.likelihood import Likelihood

AT_ONCE = 16  # answers between two writes of the file


@dataclass(frozen=True)
class Scored:
    """Sum of an answer's tokens' natural log-probabilities, and their number."""

    log_prob: float
    num_tokens: int


def score_answers(
    answers: Sequence[Answer],
    prompts: Mapping[str, Prompt],
    config: EngineConfig,
    path: Path,
    say: Callable[[int], None] = lambda _: None,
) -> dict[str, Scored]:
    """By the answer's id. What an earlier run has left in ``path`` is taken from there."""
    known = {line["id"]: Scored(line["log_prob"], line["num_tokens"]) for line in read_appended(path)}
    keys = {answer.id: _key(config.model, prompts[answer.prompt_id], answer) for answer in answers if answer.report}
    todo = {keys[answer.id]: answer for answer in answers if answer.report and keys[answer.id] not in known}
    if todo:
        folder = resolve_model(config)
        tokenizer, likelihood = Tokenizer.load(folder, None), Likelihood.load(folder, device=config.device)
        names = list(todo)
        with path.open("a", encoding="utf-8") as file:
            for start in range(0, len(names), AT_ONCE):
                part = names[start : start + AT_ONCE]
                pairs = [_ids(tokenizer, prompts[todo[key].prompt_id], todo[key]) for key in part]
                for key, values in zip(part, answer_log_probs(likelihood, pairs), strict=True):
                    known[key] = Scored(sum(values), len(values))
                    line = {"id": key, "log_prob": known[key].log_prob, "num_tokens": known[key].num_tokens}
                    file.write(to_line(line))
                file.flush()
                say(len(part))
    return {id_: known[key] for id_, key in keys.items()}


def perplexity(scored: Sequence[Scored]) -> float | None:
    """Over all tokens of the answers; None where there are none."""
    num_tokens = sum(answer.num_tokens for answer in scored)
    return math.exp(-sum(answer.log_prob for answer in scored) / num_tokens) if num_tokens else None


def _ids(tokenizer: Tokenizer, prompt: Prompt, answer: Answer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert answer.report
    return tuple(tokenizer.encode_chat(prompt.messages)), tuple(tokenizer.encode(answer.report.text))


def _key(model: str, prompt: Prompt, answer: Answer) -> str:
    assert answer.report
    return hashlib.sha256(json.dumps([model, prompt.messages, answer.report.text]).encode()).hexdigest()[:32]
