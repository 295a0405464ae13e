"""Pairs of a better and a worse answer, chosen from scored samples."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Promise, Sync, TagMap, parse
from pasta_ray.lang.grammar import body_budget
from pasta_ray.lang.layout import Range
from pasta_ray.train.data import ChatTokenizer, Example, Record, build_example
from pasta_ray.train.jsonl import read_models

SAME = "no two different samples"
TIED = "all samples score the same"
CUT_OFF = "every sample was cut off"
BELOW = "no finished sample scores above the worst"


class Scored(Record):
    """One line of a scored file: a sample with its speed and its quality. ``document`` is as it was generated."""

    prompt_id: str
    finish_reason: Literal["stop", "length"]
    completion_tokens: int = Field(ge=0)
    speedup: float = Field(gt=0, allow_inf_nan=False)
    quality: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    model: str = "?"
    adapter: str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason == "stop"

    def score(self, quality_weight: float) -> float:
        """speedup + λ·quality; λ = ∞ ranks by quality alone, λ = 0 by speed alone. An answer that ran into the token
        limit has no quality: judges know no unfinished answers, and a loop may please them."""
        if quality_weight == 0:
            return self.speedup
        assert self.quality is not None
        quality = self.quality if self.finished else 0.0
        return quality if math.isinf(quality_weight) else self.speedup + quality_weight * quality


@dataclass(frozen=True)
class Pair:
    """The best and the worst of a prompt's ``num_samples``, with their scores."""

    chosen: Scored
    rejected: Scored
    chosen_score: float
    rejected_score: float
    num_samples: int

    def line(self) -> dict[str, Any]:
        """What the run's folder keeps of it."""
        return {
            "prompt_id": self.chosen.prompt_id,
            "chosen": self.chosen.id,
            "rejected": self.rejected.id,
            "chosen_score": self.chosen_score,
            "rejected_score": self.rejected_score,
            "num_samples": self.num_samples,
        }


@dataclass(frozen=True)
class Pairs:
    """All pairs, in their prompts' order; how many prompts have how many samples, how many samples are whose; what was
    left out, by reason."""

    pairs: tuple[Pair, ...]
    num_prompts: int
    num_cut_off: int
    sizes: dict[int, int]
    sampled_by: dict[str, int]
    left_out: dict[str, int]

    def only(self, pairs: Sequence[Pair], why: str) -> "Pairs":
        """These of them; the others are left out, and this is why."""
        num_others = len(self.pairs) - len(pairs)
        return replace(self, pairs=tuple(pairs), left_out=self.left_out | ({why: num_others} if num_others else {}))

    def report(self) -> dict[str, Any]:
        """Counts, and what the chosen are like beside the rejected: means, and how often the chosen is longer."""
        report: dict[str, Any] = {
            "num_prompts": self.num_prompts,
            "prompts_by_num_samples": self.sizes,
            "sampled_by": self.sampled_by,
            "num_pairs": len(self.pairs),
            "num_cut_off_samples": self.num_cut_off,
            "num_cut_off_chosen": sum(not pair.chosen.finished for pair in self.pairs),
            "num_cut_off_rejected": sum(not pair.rejected.finished for pair in self.pairs),
            "left_out": self.left_out,
        }
        if not self.pairs:
            return report
        report["chosen"] = asdict(_Means.of([pair.chosen for pair in self.pairs]))
        report["rejected"] = asdict(_Means.of([pair.rejected for pair in self.pairs]))
        longer = [pair.chosen.completion_tokens > pair.rejected.completion_tokens for pair in self.pairs]
        return report | {"chosen_longer": fmean(longer)}


@dataclass(frozen=True)
class _Means:
    speedup: float
    quality: float | None
    completion_tokens: float

    @classmethod
    def of(cls, samples: Sequence[Scored]) -> "_Means":
        qualities = [sample.quality for sample in samples if sample.quality is not None]
        return cls(
            fmean(sample.speedup for sample in samples),
            fmean(qualities) if len(qualities) == len(samples) else None,
            fmean(sample.completion_tokens for sample in samples),
        )


def read_scored(paths: Iterable[Path], *, need_quality: bool) -> list[Scored]:
    """All samples of some scored files. Raises InputError that names file and line, also for an id that comes twice."""
    samples: dict[str, Scored] = {}
    for path in paths:
        for where, sample in read_models(path, Scored):
            if need_quality and sample.quality is None:
                raise InputError(f"{where}: quality: missing; score the samples first, or set lambda to 0")
            if sample.id in samples:
                raise InputError(f"{where}: id: {sample.id!r} comes twice; allowed: each sample once")
            samples[sample.id] = sample
    return list(samples.values())


def by_prompt(samples: Iterable[Scored]) -> list[list[Scored]]:
    """Each prompt's samples, in their order."""
    prompts: dict[str, list[Scored]] = {}
    for sample in samples:
        prompts.setdefault(sample.prompt_id, []).append(sample)
    return list(prompts.values())


def choose_pairs(samples: Iterable[Scored], quality_weight: float, *, pair_cut_off: bool = False) -> Pairs:
    """Per prompt the best and the worst sample by speedup + λ·quality, λ being ``quality_weight``.

    An answer that ran into the token limit is never the better one where another sample of its prompt was finished: it
    may have gone on for ever, and its speedup is that of a part. It may be the worse one. Where every sample was cut
    off the prompt is left out, unless ``pair_cut_off``. Equal scores: the first of the file.
    """
    prompts = by_prompt(samples)
    pairs: list[Pair] = []
    left_out: Counter[str] = Counter()
    for group in prompts:
        pair = _choose(group, quality_weight, pair_cut_off)
        if isinstance(pair, Pair):
            pairs.append(pair)
        else:
            left_out[pair] += 1
    return Pairs(
        pairs=tuple(pairs),
        num_prompts=len(prompts),
        num_cut_off=sum(not sample.finished for group in prompts for sample in group),
        sampled_by=dict(Counter(f"{s.model} {s.adapter or ''}".strip() for group in prompts for s in group)),
        sizes=dict(sorted(Counter(len(group) for group in prompts).items())),
        left_out=dict(left_out),
    )


def _choose(group: Sequence[Scored], quality_weight: float, pair_cut_off: bool) -> Pair | str:
    """A prompt's pair, or why it has none."""
    if len({sample.document for sample in group}) < 2:
        return SAME
    finished = [sample for sample in group if sample.finished]
    if not finished and not pair_cut_off:
        return CUT_OFF
    scores = {sample.id: sample.score(quality_weight) for sample in group}
    best = max(finished or group, key=lambda sample: scores[sample.id])
    worst = min(group, key=lambda sample: scores[sample.id])
    if max(scores.values()) == scores[worst.id]:
        return TIED
    if scores[best.id] <= scores[worst.id]:
        return BELOW
    if best.document == worst.document:
        return SAME
    return Pair(best, worst, scores[best.id], scores[worst.id], len(group))


def build_response(sample: Scored, tokenizer: ChatTokenizer, tags: TagMap | None) -> Example:
    """A sample in tokens, labelled where the model sampled: log π(y) is of its own choices alone.

    Predicted lengths stay as generated. An answer that was cut off has no end token. ``<|/async|>`` has no label where
    the decoder wrote it, in a body that ran into its budget, or the text form did, in an answer that was cut off before
    a sync joined the body.
    """
    example = build_example(sample, tokenizer, tags, exact=False, finished=sample.finished)
    if tags is None:
        return example
    sources = list(example.layout.label_source)
    document = parse(sample.document, tags.positions)
    bodies = _bodies(example.layout.ids, tags)
    for promise, (start, end), joined in zip(document.promises, bodies, _joined(document), strict=True):
        at_budget = end - start >= body_budget(promise.num_tokens)
        if at_budget or not (joined or sample.finished):
            sources[end - 1] = None
    return replace(example, layout=replace(example.layout, label_source=tuple(sources)))


def _bodies(ids: Sequence[int], tags: TagMap) -> list[Range]:
    """Where each body stands, its two tags included."""
    starts = [index for index, token in enumerate(ids) if token == tags.async_]
    ends = [index + 1 for index, token in enumerate(ids) if token == tags.async_end]
    return list(zip(starts, ends, strict=True))


def _joined(document: Document) -> list[bool]:
    """For each promise, whether the main branch went on behind a sync after it: then its body was closed by then."""
    nodes = document.nodes[:-1] if document.nodes and isinstance(document.nodes[-1], Sync) else document.nodes
    last_sync = max((index for index, node in enumerate(nodes) if isinstance(node, Sync)), default=-1)
    return [index < last_sync for index, node in enumerate(document.nodes) if isinstance(node, Promise)]
