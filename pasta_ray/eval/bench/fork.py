"""`bench fork`: what forking and joining cost in time and in copied KV, beside copying the KV as others do."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch

from pasta_ray.engine import Engine
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.messages import MAIN_BRANCH
from pasta_ray.engine.slab import Slab
from pasta_ray.eval.bench.figures import Result, Say, interleave
from pasta_ray.eval.bench.machine import Machine
from pasta_ray.eval.bench.workload import check_room, describe_engines, random_prompts

NUM_WARMUPS = 2


@dataclass(frozen=True)
class ForkOptions:
    """``children`` are forked from a branch of ``context`` tokens, fed one token each, and joined."""

    context: int = 1000
    children: int = 8
    reps: int = 50


@dataclass(frozen=True)
class _Round:
    """Seconds of one fork, of joining all children, and of a copy of the branch's KV; bytes of KV that fork and join
    copied."""

    fork_s: float
    join_s: float
    copy_s: float
    fork_bytes: int
    join_bytes: int


def bench_fork(engines: Mapping[str, Engine], options: ForkOptions, machine: Machine, say: Say) -> Result:
    result = Result("fork", machine, asdict(options) | describe_engines(engines))
    parents = {}
    for label, engine in engines.items():
        check_room(engine, options.context, 1)
        parents[label] = _open(engine, options)
    cases = {label: partial(_round, engines[label], parent, options.children) for label, parent in parents.items()}
    for label, rounds in interleave(cases, num_warmups=NUM_WARMUPS, num_reps=options.reps, say=say).items():
        join, copy = f"{label}: join of {options.children} children", f"{label}: copy of the KV"
        result.add(f"{label}: fork", "µs", [1e6 * r.fork_s for r in rounds])
        result.add(join, "µs", [1e6 * r.join_s for r in rounds])
        result.add(copy, "µs", [1e6 * r.copy_s for r in rounds])
        result.add(f"{label}: KV copied by a round's forks", "bytes", [r.fork_bytes for r in rounds])
        result.add(f"{label}: KV copied by a join", "bytes", [r.join_bytes for r in rounds])
        result.compare(f"{copy} / fork", copy, f"{label}: fork")
        result.compare(f"{copy} / join", copy, join)
    for label, parent in parents.items():
        stored, exact = f"{label}: KV of a token, stored", f"{label}: KV of a token, exact"
        result.add(stored, "bytes", [sum(t.nbytes for t in _tensors(parent.slab)) / parent.slab.capacity])
        result.add(exact, "bytes", [parent.slab.shape.bytes_per_slot])
        result.compare(f"{label}: KV of a token, stored / exact", stored, exact)
        engines[label].free(parent)
    return result


def _open(engine: Engine, options: ForkOptions) -> Branch:
    """A prefilled branch whose slab has room for every repetition: a slab that grows copies itself, whoever asked for
    the slot, and that is neither fork's nor join's cost."""
    (prompt,) = random_prompts(1, options.context, engine.vocab_size)
    parent = engine.open(prompt)
    while parent.num_pending:
        engine.step()
    needed = (NUM_WARMUPS + options.reps) * options.children
    while parent.slab.capacity - parent.slab.num_slots < needed:
        _round(engine, parent, options.children)
    return parent


def _round(engine: Engine, parent: Branch, num_children: int) -> _Round:
    slab, token = parent.slab, parent.tokens[:1]
    before_fork = _tensors(slab)
    start = time.perf_counter()
    children = [engine.fork(parent, token, path=f"{MAIN_BRANCH}.{number}") for number in range(num_children)]
    fork_s = (time.perf_counter() - start) / num_children
    fork_bytes = _copied_bytes(before_fork, slab)
    engine.step()
    before_join = _tensors(slab)
    start = time.perf_counter()
    engine.join(parent, children)
    join_s = time.perf_counter() - start
    join_bytes = _copied_bytes(before_join, slab)
    start = time.perf_counter()
    for tensor in _tensors(slab):  # [KV heads, slots, head dimension]
        tensor[:, : slab.num_slots].clone()
    copy_s = time.perf_counter() - start
    for child in children:
        engine.close(child)
    return _Round(fork_s, join_s, copy_s, fork_bytes, join_bytes)


def _tensors(slab: Slab) -> list[torch.Tensor]:
    return [*slab.keys, *slab.values]


def _copied_bytes(before: list[torch.Tensor], slab: Slab) -> int:
    """Bytes of the tensors that are no longer where they were: the old ones are alive, so no address is used twice."""
    pairs = zip(before, _tensors(slab), strict=True)
    return sum(old.nbytes for old, new in pairs if old.data_ptr() != new.data_ptr())
