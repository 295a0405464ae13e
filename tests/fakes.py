"""A tokenizer and a decoder without a model: the prompt's last line says what the answer is.

The line's words are written one a step. ``fork`` opens a body of three words, which grows beside the main branch. Some
words do something: ``refuse`` (InputError at submission), ``crash`` (the step raises), ``poison`` (the step raises, and
so does every cancellation), ``die`` (the process ends), ``die-once`` (it makes a file of the name in the prompt's first
line and ends, if there is none yet), ``endless`` (words without end, 5 ms each).
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.messages import (
    BranchClosed,
    BranchReport,
    Counters,
    Delta,
    Event,
    Events,
    Finished,
    Likelihood,
    Parallel,
    PromiseOpened,
    Report,
    Request,
    Timing,
    Usage,
)
from pasta_ray.engine.progress import Sampled, Step
from pasta_ray.errors import InputError, ModelError
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.models import Model, Models

BODY = ("one ", "two ", "three ")


class FakeTokenizer:
    """One token a character; a chat is its messages' contents, one a line."""

    stop_ids: tuple[int, ...] = (0,)

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return self.encode("\n".join(message["content"] for message in messages))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


@dataclass
class _Branch:
    name: str
    words: Iterator[str]
    text: str = ""
    tokens: int = 0


@dataclass
class _Running:
    request: Request
    branches: list[_Branch]
    prompt: str
    num_bodies: int = 0
    num_steps: int = 0
    order: list[str | int] = field(default_factory=list)  # main's words, and the indices of bodies
    bodies: dict[int, str] = field(default_factory=dict)
    reports: list[BranchReport] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)


def _likelihoods(word: str, num_likeliest: int | None) -> tuple[Likelihood, ...]:
    """Every word is half as likely as "the ", which is half as likely as half of a character."""
    likeliest = ((b"\xe2", -0.25), (b"the ", -0.5))
    return () if num_likeliest is None else (Likelihood(word.encode(), -1.0, likeliest[:num_likeliest]),)


def _endless() -> Iterator[str]:
    while True:
        yield "word "


def _part(points: Sequence[tuple[int, float]]) -> Any:
    """What replicas tell each other of a decoder whose steps cost ``points``, with nothing in its cache."""
    return SimpleNamespace(
        curve=StepCurve(list(points)),
        num_rows=0,
        store=SimpleNamespace(key="fake", version=0, names=frozenset, bytes_per_token=1),
        engine=SimpleNamespace(pool=SimpleNamespace(max_bytes=None)),
        starter=SimpleNamespace(gate=SimpleNamespace(num_delayed=0)),
    )


class FakeDecoder:
    """See the module's docstring. ``num_slots`` counts prompt tokens and words, as the real one counts KV slots."""

    methods = ("sequential", "pasta")

    def __init__(self, replica: str = "local", step_s: float = 0.0, points: Sequence[tuple[int, float]] = ()) -> None:
        self.parts: dict[str, Any] = {"": _part(points)} if points else {}  # nothing that others might share
        self.replica = replica
        self.step_s = step_s
        self.poisoned = False
        self.cancelled: list[str] = []
        self.num_steps = self.num_rows = 0
        self._running: dict[str, _Running] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def num_requests(self) -> int:
        return len(self._running)

    @property
    def num_branches(self) -> int:
        return sum(len(running.branches) for running in self._running.values())

    @property
    def counters(self) -> Counters:
        return Counters(num_steps=self.num_steps, num_rows=self.num_rows)

    @property
    def num_slots(self) -> int:
        return sum(len(r.request.prompt_ids) + sum(b.tokens for b in r.branches) for r in self._running.values())

    def submit(self, request: Request) -> None:
        if request.method not in self.methods:
            raise InputError(f"method is {request.method!r}; allowed: {', '.join(self.methods)}")
        prompt = "".join(map(chr, request.prompt_ids))
        words = prompt.splitlines()[-1].split()
        if "refuse" in words:
            raise InputError("the prompt is refused")
        main = _endless() if "endless" in words else iter([f"{word} " for word in words])
        running = self._running[request.id] = _Running(request, [_Branch("0", main)], prompt)
        for _ in request.progress.steps:
            list(self._advance(running))

    def cancel(self, request_id: str) -> None:
        if self.poisoned:
            raise RuntimeError("the cache is corrupt")
        if self._running.pop(request_id, None) is not None:
            self.cancelled.append(request_id)

    def step(self) -> list[Events]:
        time.sleep(self.step_s)
        self.num_steps += 1
        self.num_rows += self.num_branches
        step = Step(0.0, (Sampled("0", (1,)),))
        running = list(self._running.items())
        messages = [Events(request_id, tuple(self._advance(r)), (step,)) for request_id, r in running]
        return [message for message in messages if message.events]

    def _advance(self, running: _Running) -> Iterator[Event]:
        running.num_steps += 1
        for branch in list(running.branches):
            word = next(branch.words, None)
            if word is None or running.num_steps > running.request.max_tokens:
                yield from self._end(running, branch, "stop" if word is None else "length")
            elif word.strip() == "fork" and running.request.method == "pasta":
                yield self._fork(running)
            else:
                yield self._write(running, branch, word)
        if not running.branches:
            del self._running[running.request.id]
            yield Finished(self._report(running))

    def _fork(self, running: _Running) -> PromiseOpened:
        running.num_bodies += 1
        name = f"0.{running.num_bodies}"
        running.branches.append(_Branch(name, iter(BODY)))
        running.order.append(running.num_bodies)
        return PromiseOpened(name, "0", f"topic {name}", 10)

    def _write(self, running: _Running, branch: _Branch, word: str) -> Delta:
        match word.strip():
            case "crash":
                raise ValueError("the kernel is out of luck")
            case "poison":
                self.poisoned = True
                raise ValueError("the kernel is out of luck")
            case "die":
                os._exit(1)
            case "die-once":
                mark = Path(running.prompt.splitlines()[0])
                if not mark.exists():
                    mark.touch()
                    os._exit(1)
            case "word":
                time.sleep(0.005)
        branch.tokens += 1
        branch.text += word
        if branch.name == "0":
            running.order.append(word)
        return Delta(branch.name, word, 1, _likelihoods(word, running.request.sampling.logprobs))

    def _end(self, running: _Running, branch: _Branch, reason: str) -> Iterator[Event]:
        running.branches.remove(branch)
        main = branch.name == "0"
        report = BranchReport(
            branch.name, None if main else "0", None if main else f"topic {branch.name}", None if main else 10,
            branch.tokens, 1, running.num_steps, 0.0, 0.0, self.replica, reason,  # type: ignore[arg-type]
        )  # fmt: skip
        running.reports.append(report)
        if not main:
            running.bodies[int(branch.name[2:])] = branch.text
            yield BranchClosed(branch.name, reason)  # type: ignore[arg-type]

    def _report(self, running: _Running) -> Report:
        pieces = [piece if isinstance(piece, str) else running.bodies[piece] for piece in running.order]
        text = "".join(pieces)
        main = next(report for report in running.reports if report.id == "0")
        num_tokens = len(text.split()) + 1
        return Report(
            id=running.request.id,
            method=running.request.method,
            text=text,
            document=text,
            finish_reason=main.finish_reason,
            usage=Usage(len(running.request.prompt_ids), num_tokens, 7 * running.num_bodies),
            timing=Timing(time.monotonic() - running.started, 0.0, 0.0),
            parallel=Parallel(running.num_bodies, 0, 1 + running.num_bodies, running.num_steps, num_tokens, 1.0),
            branches=tuple(running.reports),
        )


def fake_models(config: ServeConfig) -> Models:
    """What ``config`` serves, without a look at any file: adapters write PASTA-LANG, a base model no tags."""
    served = config.served.items()
    return Models(Model(name, "pasta" if m.adapter else "sequential", m.adapter, m.aliases) for name, m in served)


@dataclass(frozen=True)
class MakeFakeDecoder:
    """A decoder factory; ``failing`` replicas cannot load their weights. ``points`` are what steps cost, to tell."""

    step_s: float = 0.0
    failing: tuple[str, ...] = ()
    points: tuple[tuple[int, float], ...] = ()

    def __call__(self, replica: str) -> FakeDecoder:
        if replica in self.failing:
            raise ModelError("no such weights")
        return FakeDecoder(replica, self.step_s, self.points)


def ask(words: str, request_id: str = "a", **options: object) -> Request:
    """A request that the fake decoder answers as ``words`` say."""
    return replace(Request(request_id, tuple(map(ord, words))), **options)  # type: ignore[arg-type]
