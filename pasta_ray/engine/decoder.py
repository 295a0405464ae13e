"""Many requests over one engine, each by its own method: what a replica runs, and what `generate` runs in-process."""

from pasta_ray.engine.commit import StepOutput
from pasta_ray.engine.config import DraftConfig
from pasta_ray.engine.drafting import make_drafter
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.masks import build_masks
from pasta_ray.engine.messages import Counters, Events, Request
from pasta_ray.engine.methods import Run, check_method, find_methods, fitting_methods
from pasta_ray.engine.resume import resume
from pasta_ray.errors import InputError


class Decoder:
    """``submit`` requests, then ``step`` until none is busy. Single-threaded, like the engine it drives.

    ``replica`` names this decoder in reports, ``draft`` says how its speculative methods guess. Raises ModelError where
    the draft's model does not load, or has another vocabulary.
    """

    def __init__(self, engine: Engine, replica: str = "local", draft: DraftConfig | None = None) -> None:
        self.engine = engine
        self.replica = replica
        engine.masks = build_masks(engine.tokenizer, engine.vocab_size)
        self.drafter = make_drafter(engine, draft or DraftConfig())
        self._runs: dict[str, Run] = {}

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that this engine's model can run."""
        return fitting_methods(self.engine.tags)

    @property
    def busy(self) -> bool:
        return bool(self._runs)

    @property
    def num_slots(self) -> int:
        return self.engine.num_slots + self.drafter.num_slots

    @property
    def num_branches(self) -> int:
        return self.engine.num_branches

    @property
    def num_requests(self) -> int:
        return len(self._runs)

    @property
    def counters(self) -> Counters:
        return self.engine.counters

    def submit(self, request: Request) -> None:
        """Take a request in. Raises InputError for one that can never run here."""
        if request.id in self._runs:
            raise InputError(f"request id {request.id!r} is in use")
        check_method(request.method, self.engine.tags)
        room = self.engine.max_positions - len(request.prompt_ids)
        if request.max_tokens > room:
            raise InputError(
                f"the prompt's {len(request.prompt_ids)} tokens and max_tokens {request.max_tokens} exceed the model's"
                f" {self.engine.max_positions} positions; allowed: max_tokens up to {max(0, room)}"
            )
        method = find_methods()[request.method]
        what = (
            f"the request (prompt {len(request.prompt_ids)}, max_tokens {request.max_tokens}, max_promises"
            f" {request.max_promises}, by method {request.method!r})"
        )
        self.engine.pool.check_fits(method.max_slots(request, self.engine.tags), what)
        run = method(self.engine, request, self.replica)
        try:
            resume(run, request.progress)
        except Exception:
            run.cancel()
            raise
        self._runs[request.id] = run

    def cancel(self, request_id: str) -> None:
        """End a request and free all its slots; its events stop. Unknown ids are fine: it may just have finished."""
        run = self._runs.get(request_id)
        if run:
            run.cancel()
            self._forget(run)

    def step(self) -> list[Events]:
        """One engine step; what it brought, one entry for each request that has news."""
        self._draft()
        by_slab = {run.main.branch.slab: run for run in self._runs.values()}
        outputs: dict[Run, list[StepOutput]] = {}
        for output in self.engine.step():
            outputs.setdefault(by_slab[output.branch.slab], []).append(output)
        news = []
        for run, own in outputs.items():
            events = run.react(own)
            if run.done:
                self._forget(run)
            if events:
                news.append(Events(run.request.id, tuple(events), run.take_steps()))
        return news

    def _draft(self) -> None:
        """Guesses for all branches that use them, made together."""
        rooms = {branch: room for run in self._runs.values() for branch, room in run.drafting().items()}
        guesses = self.drafter.propose(list(rooms)) if rooms else []
        for (branch, room), ids in zip(rooms.items(), guesses, strict=True):
            self.engine.draft(branch, ids[:room])

    def _forget(self, run: Run) -> None:
        self.drafter.forget([track.branch for track in run.tracks.values()])
        del self._runs[run.request.id]
