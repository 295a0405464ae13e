"""The interpreter: fork at every promise, go on beside its body, join at a sync (lang/layout.py; arXiv 2502.11517)."""

from pasta_ray.engine.branch import Branch, Constraint
from pasta_ray.engine.commit import StepOutput
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.messages import BodyNews, BranchClosed, Event, FinishReason, PromiseOpened, Request, Synced
from pasta_ray.engine.methods.base import Run, Track
from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Sync, TagMap, Text, TokenMap
from pasta_ray.lang.document import CriticalPath, Node
from pasta_ray.lang.grammar import (
    BodyGrammar,
    MainGrammar,
    PlainGrammar,
    Unconstrained,
    body_budget,
    max_promise_annotation,
)
from pasta_ray.lang.tokens import read_head


class PastaRun(Run):
    """Acts on the tag tokens that the main branch writes; the grammar has masked those that would make no sense.

    Without the constraint, the first token with which a branch breaks the grammar is counted, and the branch goes on
    without tags: a tag is dropped, what the main branch had written of a promise becomes text, and a body writes on to
    its end. ``_take_main`` acts on the main branch's tokens.

    ``_head`` is the promise being written, ``_unsynced`` are the bodies opened since the last sync, ``_waiting`` is
    whether the main branch has written a sync whose bodies are still open, ``_away`` are the bodies decoded elsewhere,
    and ``_arrived`` is what has come of these. ``_cuts`` are the promises and syncs, each with the place where it cuts
    the main branch: its number of tokens and of pieces of text by then.
    """

    needs = TagMap

    def __init__(self, engine: Engine, request: Request, replica: str) -> None:
        if not isinstance(engine.tags, TagMap):
            raise InputError("this model knows no PASTA tags, so method 'pasta' cannot run; use 'sequential'")
        self._tags = engine.tags
        room = engine.max_positions - len(request.prompt_ids) - request.max_tokens
        self._grammar = MainGrammar(
            engine.tags, engine.tokenizer.token_text, request.max_promises, request.max_branches, positions_left=room
        )
        self._take_main = self._take_tagged
        self._bodies: dict[Track, BodyGrammar] = {}
        self._head: list[int] = []
        self._unsynced: list[Track] = []
        self._waiting = False
        self._away: set[Track] = set()
        self._arrived: list[StepOutput] = []
        self._cuts: list[tuple[Track | Sync, int, int]] = []
        super().__init__(engine, request, replica)

    @classmethod
    def max_slots(cls, request: Request, tags: TokenMap | None) -> int:
        """Of the step that reaches ``max_tokens``, every body may have sampled one token more than is wanted. Without
        the constraint there may be the half of another promise, and one token in each body that is dropped."""
        assert isinstance(tags, TagMap)
        annotation = request.max_promises * max_promise_annotation(tags.positions)
        if not request.constrained:
            annotation += max_promise_annotation(tags.positions) + request.max_promises
        num_bodies = min(request.max_branches, request.max_promises)
        return super().max_slots(request, tags) + annotation + num_bodies

    def open_main(self) -> Branch:
        constraint = self._constraint(self._grammar)
        return self.engine.open(self.request.prompt_ids, sampling=self.request.sampling, constraint=constraint)

    def _constraint(self, grammar: Constraint) -> Constraint:
        masks = self.engine.masks
        assert masks is not None
        return grammar if self.request.constrained else Unconstrained(grammar, lambda row, id_: bool(masks[row, id_]))

    def take(self, track: Track, token: int) -> list[Event]:
        return self._take_main(token) if track is self.main else self._take_body(track, token)

    def _take_tagged(self, token: int) -> list[Event]:
        tags = self._tags
        if _broken(self.main):
            return self._give_up(token)
        if token in self.engine.tokenizer.stop_ids and not self._head:
            return self._stop(self.main)
        if self._head or token == tags.promise:
            self.num_annotation += 1
            self._head.append(token)
            return self._fork() if token == tags.promise_end else []
        if token == tags.sync:
            self.num_annotation += 1
            self._waiting = True
            self.engine.hold(self.main.branch)
            events = self.flush(self.main)
            self._cut(Sync())
            return events
        return self.visible(self.main, token)

    def _take_text(self, token: int) -> list[Event]:
        return self._stop(self.main) if token in self.engine.tokenizer.stop_ids else self.visible(self.main, token)

    def _stop(self, track: Track) -> list[Event]:
        self.engine.close(track.branch)
        return self.end(track, "stop")

    def _give_up(self, token: int) -> list[Event]:
        """The main branch has broken the grammar with ``token``: it writes text alone from now on."""
        self.num_violations += 1
        self.num_annotation -= len(self._head)
        written, self._head = [*self._head, token], []
        self.main.branch.constraint = PlainGrammar()
        self._take_main = self._take_text
        events: list[Event] = []
        for id_ in written:
            if id_ in self._tags.ids:
                self.num_annotation += 1
            elif not self.full or id_ in self.engine.tokenizer.stop_ids:
                events += self._take_text(id_)
        return events

    def _fork(self) -> list[Event]:
        head, self._head = self._head, []
        topic, tokens_predicted = read_head(head, self.engine.tokenizer, self._tags)
        grammar = BodyGrammar(body_budget(tokens_predicted))
        self._grammar.num_open += 1
        gap = self._tags.positions.gap(tokens_predicted)
        self._grammar.positions_left -= gap + len(head)
        path = f"{self.main.path}.{self._grammar.num_promises}"
        branch = self.engine.fork(
            self.main.branch,
            [self._tags.async_],
            path=path,
            gap=gap,
            sampling=self.request.sampling,
            constraint=self._constraint(grammar),
        )
        events = self.flush(self.main)
        track = self._track(branch, self.main, topic, tokens_predicted, num_forced=1)
        self._bodies[track] = grammar
        self._unsynced.append(track)
        self._start(track, tokens_predicted)
        self._cut(track)
        self.num_annotation += 1
        return [*events, PromiseOpened(path, self.main.path, topic, tokens_predicted)]

    def _start(self, track: Track, tokens_predicted: int) -> None:
        if self.starter is not None:
            track.replica = self.starter.start(self.request, track.branch, tokens_predicted)
            if track.replica is not None:
                self._away.add(track)

    @property
    def stalled(self) -> bool:
        """All that is left to do is done elsewhere."""
        if not self._away or self._arrived:
            return False
        here = [track for track in self.tracks.values() if track not in self._away]
        waits = [track for track in here if (track is self.main and self._waiting) or not track.branch.decoding]
        return len(waits) == len(here) and not any(track.branch.num_feedable for track in here)

    def receive(self, path: str, news: BodyNews | None) -> None:
        track = self.tracks.get(path)
        if track not in self._away:
            return
        assert track is not None
        if news is None:
            track.replica = None
            self.engine.release(track.branch)
        else:
            self.engine.receive(track.branch, news.tokens, news.block)
            self._arrived.append(StepOutput(track.branch, news.tokens, (None,) * len(news.tokens), 0, None))
        if news is None or news.block is not None:
            self._away.remove(track)

    def take_arrived(self) -> list[StepOutput]:
        arrived, self._arrived = self._arrived, []
        return arrived

    def _take_body(self, track: Track, token: int) -> list[Event]:
        if _broken(track):
            return self._mend(track, token)
        if token != self._tags.async_end:
            return self.visible(track, token)
        self.num_annotation += 1
        self.engine.settle(track.branch)
        self._grammar.num_open -= 1
        reason: FinishReason = "length" if self._bodies[track].at_budget else "stop"
        return [*self.end(track, reason), BranchClosed(track.path, reason)]

    def _mend(self, track: Track, token: int) -> list[Event]:
        """A body has broken the grammar with ``token``, which has no text: a body that wrote the end of an answer ends
        there, any other goes on, constrained from now on."""
        self.num_violations += 1
        self.num_annotation += 1
        if token in self.engine.tokenizer.stop_ids:
            self._grammar.num_open -= 1
            return [*self._stop(track), BranchClosed(track.path, "stop")]
        grammar = self._bodies[track]
        grammar.advance(token)
        track.branch.constraint = grammar
        return []

    def after_step(self) -> list[Event]:
        """Join once a sync waits and all its bodies are closed: their last tokens and the sync share a step."""
        if not self._waiting or not all(track.finish_reason for track in self._unsynced):
            return []
        self.engine.join(self.main.branch, [track.branch for track in self._unsynced])
        self.engine.release(self.main.branch)
        self._unsynced, self._waiting = [], False
        return [Synced()]

    def document(self) -> Document:
        nodes: list[Node] = []
        start = 0
        for item, _, num_pieces in self._cuts:
            nodes.append(Text("".join(self.main.text[start:num_pieces])))
            nodes.append(item.promise(self._tags.positions) if isinstance(item, Track) else item)
            start = num_pieces
        nodes.append(Text("".join(self.main.text[start:])))
        return Document(tuple(nodes))

    def critical_path(self) -> int:
        path = CriticalPath()
        for item, num_tokens, _ in self._cuts:
            path.main(num_tokens - path.num_main)
            if isinstance(item, Track):
                path.fork(item.num_tokens + 1)
            else:
                path.sync()
        path.main(self.main.num_tokens - path.num_main)
        path.sync()
        return path.steps

    def _cut(self, item: Track | Sync) -> None:
        self._cuts.append((item, self.main.num_tokens, len(self.main.text)))


def _broken(track: Track) -> bool:
    return isinstance(track.branch.constraint, Unconstrained) and track.branch.constraint.broken
