"""Thousands of random operations under a tiny KV bound: the books agree after each, and every request gives what it
gives alone."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.messages import Event, Sampling
from pasta_ray.errors import InputError
from tests.engine.conftest import VOCAB, prompt
from tests.engine.test_memory import SLOT_BYTES
from tests.engine.test_methods import make_decoder, report, request, run

NUM_OPERATIONS = 2000
MAX_SLOTS = 160
MAX_REQUEST_SLOTS = 90

State = dict[str, tuple[int, int]]  # of each branch: tokens that have been fed at some time, tokens
Operation = Callable[["Program"], None]


@dataclass(eq=False)
class Program:
    """One request, and what was done to it at which state of its branches."""

    engine: Engine
    prompt: list[int]
    branches: dict[str, Branch] = field(default_factory=dict)
    log: list[tuple[State, Operation]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.branches["0"] = self.engine.open(self.prompt, sampling=Sampling())

    @property
    def state(self) -> State:
        return {path: (branch.num_computed, len(branch.tokens)) for path, branch in self.branches.items()}

    @property
    def tokens(self) -> dict[str, list[int]]:
        return {path: branch.tokens for path, branch in self.branches.items()}

    @property
    def num_slots(self) -> int:
        return self.branches["0"].slab.num_slots

    def do(self, operation: Operation) -> None:
        self.log.append((self.state, operation))
        operation(self)

    def advance(self, state: State) -> None:
        """Step until every branch is where ``state`` has it, with a chunk of one token so that none gets further."""
        while self.state != state:
            for path, branch in self.branches.items():
                behind = branch.num_computed < state[path][0]
                (self.engine.release if behind else self.engine.hold)(branch)
            assert self.engine.has_work, f"{self.state} does not lead to {state}"
            self.engine.step()

    def end(self) -> None:
        self.engine.free(self.branches["0"])


def random_operation(rng: random.Random, program: Program) -> Operation | None:
    """Something that changes what the request computes, and may be done to it now."""
    branch = rng.choice([branch for branch in program.branches.values() if not branch.closed])
    path, ids = branch.path, [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))]
    match rng.choice(("fork", "fork", "feed", "join", "join", "settle", "close")):
        case "fork" if len(program.branches) < 6:
            child, gap = f"{path}.{len(program.branches)}", rng.choice((0, 10))

            def fork(p: Program) -> None:
                p.branches[child] = p.engine.fork(p.branches[path], ids, path=child, gap=gap, sampling=Sampling())

            return fork
        case "feed":
            return lambda p: p.engine.feed(p.branches[path], ids)
        case "join":
            never_fed = branch.slots[branch.num_computed :]
            below = [other for other in program.branches.values() if other.path.startswith(f"{path}.")]
            children = [other.path for other in below if not other.visible[never_fed].any()]
            return lambda p: p.engine.join(p.branches[path], [p.branches[child] for child in children])
        case "settle" if path != "0":
            return lambda p: p.engine.settle(p.branches[path])
        case "close" if path != "0":
            return lambda p: p.engine.close(p.branches[path])
    return None


def check_alone(roomy: Engine, program: Program) -> None:
    """The request's tokens against those of the same program by itself."""
    alone = Program(roomy, program.prompt)
    for state, operation in program.log:
        alone.advance(state)
        operation(alone)
    alone.advance(program.state)
    assert alone.tokens == program.tokens
    alone.end()


def test_random_operations(model_dir: Path) -> None:
    """Guards the engine's memory as a whole: waiting, preemption, re-feeding, reuse of prefixes, in any order with
    forks, joins, holds and ends, lose nothing, leave nothing and change no token."""
    rng = random.Random(5)
    crowded = Engine(
        EngineConfig(
            model=str(model_dir),
            prefill_chunk=16,
            max_kv_bytes=MAX_SLOTS * SLOT_BYTES,
            prefix_cache_bytes=100 * SLOT_BYTES,
        )
    )
    roomy = Engine(EngineConfig(model=str(model_dir), prefill_chunk=1, prefix_cache_bytes=0))
    programs: list[Program] = []
    num_ended = num_branches = 0
    for _ in range(NUM_OPERATIONS):
        program = rng.choice(programs) if programs else None
        action = rng.choice(("open", "hold", "release", "change", "change", "step", "step", "step", "step", "free"))
        ends = [p for p in programs if p.num_slots > MAX_REQUEST_SLOTS]
        if program and action == "free" and rng.random() < 0.3:
            ends.append(program)
        for ended in dict.fromkeys(ends):
            num_ended, num_branches = num_ended + 1, num_branches + len(ended.branches)
            check_alone(roomy, ended)
            ended.end()
            programs.remove(ended)
        if action == "open" and len(programs) < 6:
            shared = prompt(rng.randrange(3), rng.randint(1, 30))
            programs.append(Program(crowded, [*shared, *prompt(rng.randrange(99), rng.randint(0, 9))]))
        elif program in programs and action in ("hold", "release"):
            for branch in program.branches.values():
                (crowded.release if action == "release" else crowded.hold)(branch)
        elif program in programs and action == "change" and (operation := random_operation(rng, program)):
            program.do(operation)
        elif action == "step":
            crowded.step()
        crowded.check_integrity()
    for program in programs:
        check_alone(roomy, program)
        program.end()
    crowded.check_integrity()
    assert (crowded.num_slots, crowded.num_branches, crowded.kv_bytes, crowded.num_waiting) == (0, 0, 0, 0)
    assert num_ended > 40
    assert num_branches > 2 * num_ended
    assert crowded.num_preemptions > 20
    assert crowded.num_prefix_hits > 200


def test_crowded_answers_are_the_same_documents(tmp_path: Path) -> None:
    """Guards the methods under preemption: many answers with bodies and syncs in too little room are those that each
    gives alone with all of it."""
    crowded, roomy = make_decoder(tmp_path / "crowded", max_kv_bytes=320 * SLOT_BYTES), make_decoder(tmp_path / "roomy")
    requests = [request(number, "pasta" if number % 3 else "sequential") for number in range(24)]
    answers = run(crowded, requests)
    for each in requests:
        alone = run(roomy, [each])[each.id]
        assert report(answers[each.id]).document == report(alone).document
    assert crowded.engine.num_preemptions > 10
    crowded.engine.check_integrity()
    assert (crowded.num_slots, crowded.engine.kv_bytes) == (0, 0)


def test_the_worst_case_must_fit(tmp_path: Path) -> None:
    """Guards answers in flight: a request that could outgrow the bound is refused when it comes, with what would be
    allowed; one that just fits in the worst case runs."""
    max_slots = 6 + 150 + 1 + 5 * 20 + 5  # prompt, text, end; annotation of five promises; a last token each
    decoder = make_decoder(tmp_path, max_kv_bytes=max_slots * SLOT_BYTES)
    with pytest.raises(InputError, match=rf"max_tokens 151, .* for 263 tokens; allowed: .* {max_slots} tokens"):
        decoder.submit(request(0, max_tokens=151))
    with pytest.raises(InputError, match="for 282 tokens"):
        decoder.submit(request(0, max_promises=6, max_branches=5))
    with pytest.raises(InputError, match="for 264 tokens"):
        decoder.submit(request(1, "sequential", max_tokens=256))
    assert decoder.num_requests == 0
    for number in range(0, 400, 40):
        report(run(decoder, [request(number)])[f"r{number}"])


def test_a_preempted_answer_goes_on_side_by_side(tmp_path: Path) -> None:
    """Guards limits that branches share (tokens of the answer, bodies at once): wherever a preemption falls, no branch
    may get ahead of the others while they are fed again."""
    decoder = make_decoder(tmp_path, prefix_cache_bytes=0)
    for number in range(4):
        for limits in ({"max_tokens": 60}, {"max_tokens": 300, "max_branches": 2}):
            each = request(number, **limits)
            undisturbed = report(run(decoder, [each])[each.id])
            for preempted_at in range(8, 50, 14):
                decoder.submit(each)
                events: list[Event] = []
                for step in itertools.count():
                    if step == preempted_at:
                        for tenant in decoder.engine._requests.values():
                            tenant.preempt()
                    events += [event for news in decoder.step() for event in news.events]
                    if not decoder.busy:
                        break
                assert report(events).document == undisturbed.document
