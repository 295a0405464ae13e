"""Many requests over one engine, each by its own method: what a replica runs, and what `generate` runs in-process."""

import time

from pasta_ray.engine.commit import StepOutput
from pasta_ray.engine.config import DraftConfig
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.drafting import make_drafter
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.gate import active_rows
from pasta_ray.engine.guest import GuestRun
from pasta_ray.engine.masks import build_masks
from pasta_ray.engine.messages import BodyNews, BodyRequest, Counters, Events, Request
from pasta_ray.engine.methods import Run, check_method, find_methods, fitting_methods
from pasta_ray.engine.prefix_store import PrefixStore
from pasta_ray.engine.resume import resume
from pasta_ray.engine.starter import Starter
from pasta_ray.errors import InputError


class Decoder:
    """``submit`` requests, then ``step`` until none is busy. Single-threaded, like the engine it drives.

    ``replica`` names this decoder in reports, ``draft`` says how its speculative methods guess. With a ``curve`` of
    what steps cost, which it corrects, bodies wait where the replica is full. Raises ModelError where the draft's model
    does not load, or has another vocabulary.
    """

    def __init__(
        self,
        engine: Engine,
        replica: str = "local",
        draft: DraftConfig | None = None,
        curve: StepCurve | None = None,
    ) -> None:
        self.engine = engine
        self.replica = replica
        self.curve = curve
        self.starter = Starter(engine, curve)
        self.store = PrefixStore(engine)
        engine.masks = build_masks(engine.tokenizer, engine.vocab_size)
        self.drafter = make_drafter(engine, draft or DraftConfig())
        self._runs: dict[str, Run | GuestRun] = {}

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that this engine's model can run."""
        return fitting_methods(self.engine.tags)

    @property
    def parts(self) -> "dict[str, Decoder]":
        """The decoders of a replica by the names of their models; one alone answers to any name."""
        return {"": self}

    @property
    def num_rows(self) -> int:
        """Branches that go on in the next step."""
        return active_rows(self.engine.branches)

    @property
    def busy(self) -> bool:
        """Whether a step brings any request further."""
        return any(not run.stalled for run in self._runs.values())

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

    def submit(self, request: Request | BodyRequest) -> None:
        """Take in a request, or a body of one that is decoded elsewhere. Raises InputError for one that can never run
        here."""
        if request.id in self._runs:
            raise InputError(f"request id {request.id!r} is in use")
        if isinstance(request, BodyRequest):
            self.engine.pool.check_fits(request.max_slots, f"body {request.id!r}")
            self._runs[request.id] = GuestRun(self.engine, request)
            return
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
        run.starter = self.starter  # not before: bodies that are taken again have been started
        self._runs[request.id] = run

    def cancel(self, request_id: str) -> None:
        """End a request and free all its slots; its events stop. Unknown ids are fine: it may just have finished."""
        run = self._runs.get(request_id)
        if run:
            run.cancel()
            self._forget(run)

    def receive(self, request_id: str, path: str, news: BodyNews | None) -> None:
        """What has come of a body that another replica decodes; None where that has been lost, and it goes on here."""
        run = self._runs.get(request_id)
        if isinstance(run, Run):
            run.receive(path, news)

    def step(self) -> list[Events]:
        """One engine step; what it and other replicas brought, one entry for each request that has news."""
        self.starter.gate.admit()
        self._draft()
        by_slab = {run.slab: run for run in self._runs.values()}
        arrived = {run: run.take_arrived() for run in self._runs.values()}
        outputs = {run: own for run, own in arrived.items() if own}
        for output in self._engine_step():
            outputs.setdefault(by_slab[output.branch.slab], []).append(output)
        news = []
        for run, own in outputs.items():
            events = run.react(own)
            if run.done:
                self._forget(run)
            if events:
                news.append(Events(run.id, tuple(events), run.take_steps()))
        return news

    def _engine_step(self) -> list[StepOutput]:
        num_before, start = self.engine.counters.num_rows, time.perf_counter()
        outputs = self.engine.step()
        num_rows = self.engine.counters.num_rows - num_before
        if self.curve is not None and num_rows:
            self.curve.observe(num_rows, time.perf_counter() - start)
        return outputs

    def _draft(self) -> None:
        """Guesses for all branches that use them, made together."""
        rooms = {branch: room for run in self._runs.values() for branch, room in run.drafting().items()}
        guesses = self.drafter.propose(list(rooms)) if rooms else []
        for (branch, room), ids in zip(rooms.items(), guesses, strict=True):
            self.engine.draft(branch, ids[:room])

    def _forget(self, run: Run | GuestRun) -> None:
        self.starter.end(run.id)
        self.drafter.forget(run.branches)
        del self._runs[run.id]
