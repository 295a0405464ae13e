"""Samples: N documents a prompt, decoded by the engine with as many requests in its batch as it is told.

Read it from the bottom: :func:`sample_all` hands requests to a crew of workers and takes outcomes from it; a worker is
a :class:`Sampler`, which is an engine's decoder. Crews are here (this process) and in crew.py (Ray).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from pasta_ray.engine import Engine
from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Events, Finished, Report, Request, Sampling
from pasta_ray.errors import InputError
from pasta_ray.train.jsonl import read_appended, read_models, to_line
from pasta_ray.train.judges.base import Question


class Prompt(BaseModel):
    """One line of a prompts file; source and license are carried into its samples."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    instruction: str
    system: str | None = None
    input: str | None = None
    source: str | None = None
    license: str | None = None

    @property
    def question(self) -> Question:
        return Question(self.instruction, self.input, self.system)

    @property
    def messages(self) -> list[dict[str, str]]:
        return self.question.messages


@dataclass(frozen=True)
class Plan:
    """What is sampled: ``num`` documents a prompt by ``method``, each from a seed of its own. ``max_tokens`` bounds a
    document's visible tokens. ``greedy``: sample 0 is the greedy answer, so that preferences reach what greedy decoding
    gives, loops above all, which hardly occur at a temperature."""

    num: int = 10
    method: str = "pasta"
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 384
    seed: int = 0
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.num < 1:
            raise InputError(f"num is {self.num}; allowed: 1 or more")
        if self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}; allowed: 1 or more")
        self.sampling("", 0)

    def sampling(self, prompt_id: str, k: int) -> Sampling:
        """Of the prompt's ``k``-th sample. Its seed depends on nothing else, so that what is sampled again, after a
        crash or in another order, is the same."""
        digest = blake2b(f"{self.seed}|{prompt_id}|{k}".encode(), digest_size=8).digest()
        temperature = 0.0 if self.greedy and k == 0 else self.temperature
        return Sampling(temperature, self.top_p, int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True)
class Outcome:
    """What became of a request: its report, or why the engine refused it."""

    id: str
    report: Report | None = None
    refusal: str = ""


class Decodes(Protocol):
    """What a sampler needs of `pasta_ray.engine.decoder.Decoder`."""

    @property
    def busy(self) -> bool: ...

    def submit(self, request: Request) -> None: ...

    def step(self) -> list[Events]: ...


class Sampler:
    """One engine that samples. Runs in this process or in an actor."""

    def __init__(self, load: Callable[[], Decodes]) -> None:
        self._decoder = load()

    def work(self, requests: Sequence[Request]) -> list[Outcome]:
        """Take ``requests`` into the batch, and step until any request, of these or earlier ones, has an outcome."""
        ended: list[Outcome] = []
        for request in requests:
            try:
                self._decoder.submit(request)
            except InputError as error:
                ended.append(Outcome(request.id, refusal=str(error)))
        while not ended and self._decoder.busy:
            for news in self._decoder.step():
                ended += [
                    Outcome(news.request_id, event.report) for event in news.events if isinstance(event, Finished)
                ]
        return ended


class Crew(Protocol):
    """Workers, by number."""

    @property
    def size(self) -> int: ...

    def start(self, worker: int, requests: Sequence[Request]) -> None:
        """Set the worker to work on ``requests``, beside those it has."""
        ...

    def wait(self) -> tuple[int, list[Outcome] | None]:
        """A worker that was started and has outcomes: its number, and those; None where it was lost and replaced by a
        fresh one, which has no requests. Raises ReplicaError where workers are lost too often."""
        ...


class LocalCrew:
    """One sampler in this process."""

    size = 1

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._waiting: list[Request] = []

    def start(self, worker: int, requests: Sequence[Request]) -> None:
        assert worker == 0
        self._waiting += requests

    def wait(self) -> tuple[int, list[Outcome] | None]:
        requests, self._waiting = self._waiting, []
        return 0, self._sampler.work(requests)


def sample_all(crew: Crew, requests: Iterator[Request], batch: int) -> Iterator[Outcome]:
    """The outcomes of all requests as they come; every worker has ``batch`` of them in its engine while there are."""
    running: list[dict[str, Request]] = [{} for _ in range(crew.size)]

    def refill(worker: int) -> None:
        new = list(islice(requests, batch - len(running[worker])))
        running[worker] |= {request.id: request for request in new}
        if running[worker]:
            crew.start(worker, new)

    for worker in range(crew.size):
        refill(worker)
    while any(running):
        worker, outcomes = crew.wait()
        if outcomes is None:
            crew.start(worker, list(running[worker].values()))
            continue
        for outcome in outcomes:
            del running[worker][outcome.id]
            yield outcome
        refill(worker)


class SampleFile:
    """The file of samples that a run appends to. Raises InputError where it holds samples of another plan or model."""

    def __init__(self, path: Path, plan: Plan, config: EngineConfig) -> None:
        self._plan, self._config = plan, config
        lines = read_appended(path)
        for number, line in enumerate(lines, 1):
            self._check(f"{path}, line {number}", line)
        self.done = {line["id"] for line in lines}

    def requests(self, prompts: Mapping[str, tuple[int, ...]]) -> Iterator[Request]:
        """For the prompts' token ids by prompt id: those of the samples that are not done, a prompt's one after the
        other, so that they share its prefix."""
        for prompt_id, ids in prompts.items():
            for k in range(self._plan.num):
                id_ = f"{prompt_id}#{k}"
                if id_ not in self.done:
                    sampling = self._plan.sampling(prompt_id, k)
                    yield Request(id_, ids, self._plan.method, self._plan.max_tokens, sampling=sampling)

    def num_done(self, prompts: Sequence[Prompt]) -> int:
        return sum(f"{prompt.id}#{k}" in self.done for prompt in prompts for k in range(self._plan.num))

    def line(self, prompt: Prompt, report: Report) -> dict[str, Any]:
        """One sample, as stage 2 and the judges read it."""
        k = int(report.id.rpartition("#")[2])
        return {
            "id": report.id,
            "prompt_id": prompt.id,
            "sample": k,
            **prompt.model_dump(exclude={"id"}, exclude_none=True),
            "document": report.document,
            "text": report.text,
            "finish_reason": report.finish_reason,
            "completion_tokens": report.usage.completion_tokens,
            "annotation_tokens": report.usage.annotation_tokens,
            "critical_path": report.parallel.critical_path,
            "sequential_tokens": report.parallel.sequential_tokens,
            "speedup": report.parallel.theoretical_speedup,
            **self._settings(prompt.id, k),
        }

    def _settings(self, prompt_id: str, k: int) -> dict[str, Any]:
        sampling = self._plan.sampling(prompt_id, k)
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "model": self._config.model,
            "adapter": self._config.adapter,
            "seed": sampling.seed,
        }

    def _check(self, where: str, line: Mapping[str, Any]) -> None:
        for name, wanted in self._settings(line.get("prompt_id", ""), line.get("sample", 0)).items():
            if line.get(name) != wanted:
                raise InputError(
                    f"{where}: {name} is {line.get(name)!r}, and now {wanted!r}; choose another --out file"
                )


@dataclass
class Sampled:
    """Counts of a run: samples, those that earlier runs had made, requests that the engine refused, tokens (annotation
    included), and how many samples ended by themselves. ``speedup`` is their geometric mean."""

    num_samples: int = 0
    num_before: int = 0
    num_refused: int = 0
    num_tokens: int = 0
    num_finished: int = 0
    log_speedup: float = 0.0

    def count(self, line: Mapping[str, Any]) -> None:
        self.num_samples += 1
        self.num_tokens += line["completion_tokens"] + line["annotation_tokens"]
        self.num_finished += line["finish_reason"] == "stop"
        self.log_speedup += math.log(max(line["speedup"], 1e-9))

    @property
    def speedup(self) -> float | None:
        return math.exp(self.log_speedup / self.num_samples) if self.num_samples else None


def read_prompts(path: Path) -> list[Prompt]:
    """Raises InputError that names file and line, for an id used twice too."""
    prompts: dict[str, Prompt] = {}
    for where, prompt in read_models(path, Prompt):
        if prompt.id in prompts:
            raise InputError(f"{where}: id {prompt.id!r} was used before")
        prompts[prompt.id] = prompt
    return list(prompts.values())


def encode_prompts(
    prompts: Sequence[Prompt], encode_chat: Callable[[Sequence[dict[str, str]]], list[int]]
) -> dict[str, tuple[int, ...]]:
    """Token ids by prompt id. Raises InputError that names the prompt."""
    encoded = {}
    for prompt in prompts:
        try:
            encoded[prompt.id] = tuple(encode_chat(prompt.messages))
        except InputError as error:
            raise InputError(f"prompt {prompt.id!r}: {error}") from error
    return encoded


def load_decoder(config: EngineConfig) -> Decoder:
    return Decoder(Engine(config))


def write_samples(
    file: SampleFile,
    path: Path,
    prompts: Sequence[Prompt],
    outcomes: Iterator[Outcome],
    result: Sampled,
) -> Iterator[Outcome]:
    """Append every outcome's line as it comes, count it, and hand it on."""
    by_id = {prompt.id: prompt for prompt in prompts}
    with path.open("a", encoding="utf-8") as out:
        for outcome in outcomes:
            if outcome.report is None:
                result.num_refused += 1
            else:
                line = file.line(by_id[outcome.id.rpartition("#")[0]], outcome.report)
                out.write(to_line(line))
                out.flush()
                result.count(line)
            yield outcome
