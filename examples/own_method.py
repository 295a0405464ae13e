"""A decoding method of one's own: an opening sentence, both sides of the question at the same time, and a conclusion.

python examples/own_method.py "Should schools teach chess?"

It needs no training: the forced starts of the branches say what each is to write. Installed as an entry point of the
group ``pasta_ray.methods`` it is a method like any other, also of the service (docs/extending.md).
"""

import argparse
from collections.abc import Sequence

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import BranchClosed, Event, Finished, FinishReason, PromiseOpened, Request, Synced
from pasta_ray.engine.methods import METHODS
from pasta_ray.engine.methods.base import Run, Track
from pasta_ray.lang import Document, Promise, Sync, Text, TokenMap
from pasta_ray.lang.grammar import PlainGrammar

OPENING_BUDGET = 30
SIDE_BUDGET = 60
STARTS = {"For": "\n\nFor it:", "Against": "\n\nAgainst it:"}
CONCLUSION = "\n\nIn short:"
MAX_FORCED = 64  # tokens of all starts together, in any tokenizer that knows these words


class BothSides(Run):
    """``take`` is told every sampled token, ``after_step`` that a step is over; both give events for clients."""

    def open_main(self) -> Branch:
        self._sides: list[Track] = []
        self._joined = False
        return self.engine.open(self.request.prompt_ids, sampling=self.request.sampling, constraint=PlainGrammar())

    @classmethod
    def max_slots(cls, request: Request, tags: TokenMap | None) -> int:
        return super().max_slots(request, tags) + MAX_FORCED

    def take(self, track: Track, token: int) -> list[Event]:
        if track is not self.main:
            return self._take_side(track, token)
        ends = token in self.engine.tokenizer.stop_ids
        if self._joined:
            if ends:
                self.engine.close(track.branch)
                return self.end(track, "stop")
            return self.visible(track, token)
        if ends:  # an opening is not yet the end: forget that token
            self.engine.rewind(track.branch, len(track.branch.tokens) - 1)
            return self._fork()
        events = self.visible(track, token)
        done = track.num_tokens == OPENING_BUDGET or "\n" in "".join(track.text)
        return events + self._fork() if done else events

    def _fork(self) -> list[Event]:
        self.engine.settle(self.main.branch)
        events = self.flush(self.main)
        for number, (topic, start) in enumerate(STARTS.items(), 1):
            forced, path = self.engine.tokenizer.encode(start), f"0.{number}"
            branch = self.engine.fork(
                self.main.branch, forced, path=path, sampling=self.request.sampling, constraint=PlainGrammar()
            )
            side = self._track(branch, self.main, topic, SIDE_BUDGET, num_forced=len(forced))
            self._sides.append(side)
            events.append(PromiseOpened(path, "0", topic, SIDE_BUDGET))
            for token in forced:
                events += self.visible(side, token)
        return events

    def _take_side(self, side: Track, token: int) -> list[Event]:
        if token in self.engine.tokenizer.stop_ids:
            self.engine.close(side.branch)
            return self._end_side(side, "stop")
        events = self.visible(side, token)
        if side.num_forced + side.num_tokens < SIDE_BUDGET:
            return events
        self.engine.settle(side.branch)
        return events + self._end_side(side, "length")

    def _end_side(self, side: Track, reason: FinishReason) -> list[Event]:
        return [*self.end(side, reason), BranchClosed(side.path, reason)]

    def after_step(self) -> list[Event]:
        if self._joined or not self._sides or not all(side.finish_reason for side in self._sides):
            return []
        self._joined = True
        forced = self.engine.tokenizer.encode(CONCLUSION)
        self.engine.join(self.main.branch, [side.branch for side in self._sides])
        self.engine.feed(self.main.branch, forced)
        self.engine.resume(self.main.branch)
        events: list[Event] = [Synced()]
        for token in forced:
            events += self.visible(self.main, token)
        return events

    def document(self) -> Document:
        nodes: list[Text | Promise | Sync] = [
            Text(part) if isinstance(part, str) else part.promise() for part in self.main.parts()
        ]
        if self._joined:
            nodes.insert(-1, Sync())
        return Document(tuple(nodes))

    def critical_path(self) -> int:
        return self.num_steps


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="Should schools teach chess?")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--max-tokens", type=int, default=200)
    options = parser.parse_args(args)
    METHODS.setdefault("both-sides", BothSides)  # in this process alone; an entry point is for all
    decoder = Decoder(Engine(EngineConfig(options.model)))
    ids = decoder.engine.tokenizer.encode_chat([{"role": "user", "content": options.question}])
    decoder.submit(Request("r", tuple(ids), "both-sides", options.max_tokens))
    while decoder.busy:
        for news in decoder.step():
            for event in news.events:
                if isinstance(event, Finished):
                    print(event.report.text)
                    print(f"-- {event.report.parallel.theoretical_speedup:.2f} times as fast in steps")


if __name__ == "__main__":
    main()
