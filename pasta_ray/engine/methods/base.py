"""What every method shares: one request's branches, its visible text, its clock, and the report at its end."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.commit import StepOutput
from pasta_ray.engine.detokenizer import Detokenizer
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.likelihoods import Scored, likelihoods
from pasta_ray.engine.messages import (
    BodyNews,
    BranchReport,
    Delta,
    Event,
    Finished,
    FinishReason,
    Parallel,
    Report,
    Request,
    Timing,
    Usage,
)
from pasta_ray.engine.progress import Sampled, Step
from pasta_ray.engine.reading import Reader
from pasta_ray.engine.sampler import Scores
from pasta_ray.engine.slab import Slab
from pasta_ray.engine.starter import Starter
from pasta_ray.lang import PRED_10X, Document, PositionStrategy, Promise, Text, TokenMap


@dataclass(eq=False)
class Track:
    """One branch of a request as a method follows it. Steps are the request's own, from 1; times are seconds.

    ``num_tokens`` were sampled, ``num_forced`` before them were not. ``children`` were forked from it, each with the
    place where it cuts ``text``: the number of pieces by then. ``replica`` decodes it where that is another one.
    ``scores`` are those of the token being taken, and ``scored`` the tokens whose text is not certain yet, both where
    the request asks for likelihoods.
    """

    branch: Branch
    detokenizer: Detokenizer
    first_step: int
    start_s: float
    parent: str | None = None
    topic: str | None = None
    tokens_predicted: int | None = None
    num_forced: int = 0
    replica: str | None = None
    num_tokens: int = 0
    last_step: int = 0
    end_s: float = 0.0
    finish_reason: FinishReason | None = None
    text: list[str] = field(default_factory=list)
    children: list[tuple["Track", int]] = field(default_factory=list)
    scores: Scores | None = None
    scored: list[Scored] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.branch.path

    def parts(self) -> Iterator["str | Track"]:
        """Its text, with its children in their places."""
        start = 0
        for child, num_pieces in self.children:
            yield "".join(self.text[start:num_pieces])
            yield child
            start = num_pieces
        yield "".join(self.text[start:])

    def promise(self, positions: PositionStrategy = PRED_10X) -> Promise:
        """This track as a body of text in a document."""
        assert self.topic is not None
        assert self.tokens_predicted is not None
        return Promise(self.topic, self.tokens_predicted, (Text("".join(self.text)),), positions)


class Run(ABC):
    """One request being decoded. ``react`` takes the outputs of its branches in one step and gives its events."""

    needs: ClassVar[type[TokenMap] | None] = None

    def __init__(self, engine: Engine, request: Request, replica: str) -> None:
        self.engine = engine
        self.request = request
        self.done = False
        self._replica = replica
        self.elapsed_s = 0.0
        self._first_token_s: float | None = None
        self._first_text_s: float | None = None
        self._max_branches = 1
        self.num_steps = 0
        self.num_visible = 0
        self.num_annotation = 0
        self.num_drafted = 0
        self.num_accepted = 0
        self.num_violations = 0
        self._reader = Reader(request.stop)
        self._shown: list[str] = []
        self._new_steps: list[Step] = []
        self.starter: Starter | None = None
        self.tracks: dict[str, Track] = {}
        self.main = self._track(self.open_main())

    @classmethod
    def max_slots(cls, request: Request, tags: TokenMap | None) -> int:
        """The most KV slots that the request can come to need on a model that writes ``tags``; the end token is the one
        beyond its ``max_tokens``."""
        del tags
        return len(request.prompt_ids) + request.max_tokens + 1

    @classmethod
    def fits(cls, tags: TokenMap | None) -> bool:
        """Whether a model that writes ``tags`` can run this method."""
        return cls.needs is None or isinstance(tags, cls.needs)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def slab(self) -> Slab:
        return self.main.branch.slab

    @property
    def branches(self) -> list[Branch]:
        """All that it has had so far."""
        return [track.branch for track in self.tracks.values()]

    @property
    def stalled(self) -> bool:
        """Whether no step brings it further, until something comes from elsewhere."""
        return False

    def receive(self, path: str, news: BodyNews | None) -> None:
        """What has come of a body that is decoded elsewhere; None where nothing more will. Unknown ones are fine."""
        del path, news

    def take_arrived(self) -> list[StepOutput]:
        """What was received since it was last taken, as if a step had given it."""
        return []

    @abstractmethod
    def open_main(self) -> Branch:
        """Open the request on the engine."""

    @abstractmethod
    def take(self, track: Track, token: int) -> list[Event]:
        """Act on one sampled token."""

    @abstractmethod
    def document(self) -> Document:
        """The answer so far."""

    @abstractmethod
    def critical_path(self) -> int:
        """Model steps of the answer that had to follow one another, had every branch been decoded at once."""

    def drafting(self) -> dict[Branch, int]:
        """The branches that guess in the coming step, each with the most tokens that it can use."""
        return {}

    def after_step(self) -> list[Event]:
        """What follows once every output of a step has been taken, such as a join."""
        return []

    def react(self, outputs: Sequence[StepOutput]) -> list[Event]:
        """Take one step's outputs, in the order of the branches' paths."""
        events = self._react(outputs)
        return self._until_stop(events) if self.request.stop else events

    def _react(self, outputs: Sequence[StepOutput]) -> list[Event]:
        events: list[Event] = []
        sampled = [output for output in outputs if output.tokens]
        if not sampled:
            return events
        self.num_steps += 1
        self._max_branches = max(self._max_branches, len(sampled))
        now = self.elapsed_s
        taken = tuple(Sampled(output.branch.path, output.tokens, output.num_drafted) for output in sampled)
        self._new_steps.append(Step(now, taken))
        self._first_token_s = self._first_token_s or now
        for output in sampled:
            track = self.tracks[output.branch.path]
            track.last_step, track.end_s = self.num_steps, now
            self.num_drafted += output.num_drafted
            self.num_accepted += len(output.tokens) - 1
            for token, track.scores in zip(output.tokens, output.scores, strict=True):
                assert not track.finish_reason, "a branch's last token was followed by a guess"
                track.num_tokens += 1
                events += self.take(track, token)
                if self.full:
                    return [*events, *self._finish("length")]
        events += self.after_step()
        if self.full:
            return [*events, *self._finish("length")]
        if all(track.finish_reason for track in self.tracks.values()):
            events += self._finish("stop")
        return events

    def _until_stop(self, events: list[Event]) -> list[Event]:
        """Read along as the client does, and end the answer where its text has come to a stop string."""
        self._shown += [self._reader.see(event) for event in events]
        if self._reader.stopped is None:
            return events
        *rest, last = events if self.done else [*events, *self._finish("cancelled")]
        assert isinstance(last, Finished)
        return [*rest, Finished(self._stopped_report(last.report, self._reader.stopped))]

    def _stopped_report(self, report: Report, stop: str) -> Report:
        """``report`` with the text before ``stop``, which sequential decoding would have had to write too."""
        text, parallel = "".join(self._shown), report.parallel
        num_tokens = len(self.engine.tokenizer.encode(text + stop))
        speedup = num_tokens / max(1, parallel.critical_path)
        parallel = replace(parallel, sequential_tokens=num_tokens, theoretical_speedup=speedup)
        return replace(report, text=text, finish_reason="stop", parallel=parallel)

    @property
    def full(self) -> bool:
        """Whether the answer has all the visible tokens that it may have."""
        return self.num_visible >= self.request.max_tokens

    def take_steps(self) -> tuple[Step, ...]:
        """The steps since they were last taken."""
        steps, self._new_steps = tuple(self._new_steps), []
        return steps

    def cancel(self) -> None:
        """Free every slot; no more events."""
        self.done = True
        self.engine.free(self.main.branch)

    def visible(self, track: Track, token: int) -> list[Event]:
        """A token of the answer's text on ``track``."""
        self.num_visible += 1
        if track.scores is not None:
            track.scored.append((token, track.scores))
        return self._delta(track, track.detokenizer.add(token), 1)

    def flush(self, track: Track) -> list[Event]:
        """What the detokenizer still holds, at the end of a stretch of text."""
        text = track.detokenizer.flush()
        return self._delta(track, text, 0) if text or track.scored else []

    def end(self, track: Track, reason: FinishReason) -> list[Event]:
        """``track`` has its last token."""
        events = self.flush(track)
        track.finish_reason = reason
        return events

    def _delta(self, track: Track, text: str, num_tokens: int) -> list[Event]:
        if text:
            self._first_text_s = self._first_text_s or self.elapsed_s
            track.text.append(text)
        if not track.scored or (num_tokens and not text):
            return [Delta(track.path, text, num_tokens)]
        scored, track.scored = track.scored, []
        likely = likelihoods(scored, text, self.request.sampling.logprobs or 0, self.engine.tokenizer)
        return [Delta(track.path, text, num_tokens, likely)]

    def _track(
        self,
        branch: Branch,
        parent: Track | None = None,
        topic: str | None = None,
        tokens_predicted: int | None = None,
        num_forced: int = 0,
    ) -> Track:
        track = Track(
            branch,
            Detokenizer(self.engine.tokenizer),
            self.num_steps + 1,
            self.elapsed_s,
            parent.path if parent else None,
            topic,
            tokens_predicted,
            num_forced,
        )
        self.tracks[branch.path] = track
        if parent:
            parent.children.append((track, len(parent.text)))
        return track

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request was submitted; what is set goes on running from there."""
        return time.perf_counter() - self._submitted

    @elapsed_s.setter
    def elapsed_s(self, seconds: float) -> None:
        self._submitted = time.perf_counter() - seconds

    def _finish(self, reason: FinishReason) -> list[Event]:
        events: list[Event] = []
        for track in self.tracks.values():
            if not track.finish_reason:
                events += self.end(track, reason)
        report = self._report(reason)
        self.done = True
        self.engine.free(self.main.branch)
        return [*events, Finished(report)]

    def _report(self, reason: FinishReason) -> Report:
        document = self.document()
        text = document.text()
        ended = int(reason == "stop")
        sequential_tokens = len(self.engine.tokenizer.encode(text)) + ended
        critical_path = self.critical_path()
        wall_s = self.elapsed_s
        return Report(
            id=self.request.id,
            method=self.request.method,
            text=text,
            document=document.linear(),
            finish_reason=reason,
            usage=Usage(len(self.request.prompt_ids), self.num_visible + ended, self.num_annotation),
            timing=Timing(wall_s, self._first_text_s or wall_s, self._first_token_s or wall_s),
            parallel=Parallel(
                num_promises=len(self.tracks) - 1,
                num_syncs=document.num_syncs,
                max_branches=self._max_branches,
                critical_path=critical_path,
                sequential_tokens=sequential_tokens,
                theoretical_speedup=sequential_tokens / max(1, critical_path),
                num_drafted=self.num_drafted,
                num_accepted=self.num_accepted,
                num_violations=self.num_violations,
            ),
            branches=tuple(_branch_report(track, self._replica) for track in self.tracks.values()),
        )


def _branch_report(track: Track, replica: str) -> BranchReport:
    assert track.finish_reason
    return BranchReport(
        id=track.path,
        parent=track.parent,
        topic=track.topic,
        tokens_predicted=track.tokens_predicted,
        tokens=track.num_forced + track.num_tokens,
        first_step=track.first_step,
        last_step=track.last_step,
        start_s=track.start_s,
        end_s=track.end_s,
        replica=track.replica or replica,
        finish_reason=track.finish_reason,
    )
