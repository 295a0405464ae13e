"""APAR (arXiv 2401.06761): threads that fork where a paragraph has details, and never join."""

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.messages import BranchClosed, Event, PromiseOpened, Request
from pasta_ray.engine.methods.base import Run, Track
from pasta_ray.errors import InputError
from pasta_ray.lang import ControlMap, Document, Text, TokenMap
from pasta_ray.lang.apar import Forks, ThreadGrammar


class ThreadsRun(Run):
    """Every thread writes text, and a fork token where the rest of a paragraph is a new thread's to write. That one
    starts with a forced child token, sees what its parent saw by then, and takes the parent's next position; so does
    the parent's next token. Each ends with a stop token of its own; the answer when all have ended.

    The reader sees the tree in order: a thread's text up to a fork, the forked thread's, and the rest.
    """

    needs = ControlMap

    def __init__(self, engine: Engine, request: Request, replica: str) -> None:
        if not isinstance(engine.tags, ControlMap):
            raise InputError("this model knows no APAR controls, so method 'apar' cannot run; use 'sequential'")
        self._controls = engine.tags
        room = engine.max_positions - len(request.prompt_ids) - request.max_tokens
        # A fork puts two tokens on the longest path at most: its own and the child's.
        self._forks = Forks(min(request.max_promises, room // 2), request.max_branches)
        super().__init__(engine, request, replica)

    @classmethod
    def max_slots(cls, request: Request, tags: TokenMap | None) -> int:
        """A fork costs its own token, the child's first and the child's end; and of the step that reaches
        ``max_tokens``, every thread may have sampled one token more than is wanted."""
        return super().max_slots(request, tags) + 4 * request.max_promises

    def open_main(self) -> Branch:
        grammar = ThreadGrammar(self._controls, self._forks, depth=0)
        return self.engine.open(self.request.prompt_ids, sampling=self.request.sampling, constraint=grammar)

    def take(self, track: Track, token: int) -> list[Event]:
        if token == self._controls.fork:
            return self._fork(track)
        if token not in self.engine.tokenizer.stop_ids:
            return self.visible(track, token)
        self.engine.close(track.branch)
        grammar = track.branch.constraint
        assert isinstance(grammar, ThreadGrammar)
        grammar.end()
        events = self.end(track, "stop")
        return events if track is self.main else [*events, BranchClosed(track.path, "stop")]

    def _fork(self, parent: Track) -> list[Event]:
        self.num_annotation += 2
        self._forks.num_forks += 1
        self._forks.num_open += 1
        path = f"{parent.path}.{len(parent.children) + 1}"
        branch = self.engine.fork(
            parent.branch,
            [self._controls.child],
            path=path,
            sampling=self.request.sampling,
            constraint=ThreadGrammar(self._controls, self._forks, depth=path.count(".")),
        )
        events = self.flush(parent)
        self._track(branch, parent, num_forced=1)
        return [*events, PromiseOpened(path, parent.path)]

    def document(self) -> Document:
        """Text alone: version 1 of PASTA-LANG has no bodies in bodies, and a thread's details end with no sync. The
        tree is in the report's branches."""
        return Document((Text(_text(self.main)),))

    def critical_path(self) -> int:
        """The last step of any thread: each starts right behind its parent's fork."""
        return max(track.first_step - 1 + track.num_tokens for track in self.tracks.values())


def _text(track: Track) -> str:
    return "".join(part if isinstance(part, str) else _text(part) for part in track.parts())
