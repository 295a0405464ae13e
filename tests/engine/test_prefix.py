"""The prefix cache: a tree that keeps its bounds, and requests that take from it what they would have computed."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.messages import Sampling
from pasta_ray.engine.prefix import Lease, PrefixCache
from tests.engine.conftest import prompt

TOKEN_BYTES = 2 * 2 * 3 * 4  # keys and values, KV heads, head dimension, float32


def kv_of(ids: Sequence[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """One layer; the values at each place are a function of all tokens up to it, as in a model."""
    codes = torch.tensor([float(hash(tuple(ids[: i + 1])) % 9973) for i in range(len(ids))])
    keys_HND = codes[None, :, None].expand(2, -1, 3)
    return [keys_HND], [keys_HND + 0.5]


def put(cache: PrefixCache, ids: Sequence[int]) -> None:
    cache.insert(ids, *kv_of(ids))


def length(cache: PrefixCache, ids: Sequence[int]) -> int:
    """How much of ``ids`` is there, checked against what it should be."""
    lease = cache.match(ids)
    check_content(lease, ids)
    cache.release(lease)
    return lease.num_tokens


def check_content(lease: Lease, ids: Sequence[int]) -> None:
    if lease.num_tokens:
        (keys,), (values,) = kv_of(ids[: lease.num_tokens])
        torch.testing.assert_close(torch.cat([run.keys[0] for run in lease.runs()], dim=1), keys)
        torch.testing.assert_close(torch.cat([run.values[0] for run in lease.runs()], dim=1), values)


def test_split_and_extend() -> None:
    """Guards the tree's shape: what two prefixes share is held once, and each part has its own KV."""
    cache = PrefixCache(100 * TOKEN_BYTES)
    put(cache, [1, 2, 3, 4])
    put(cache, [1, 2, 5])
    put(cache, [1, 2, 5, 6, 7])
    assert cache.num_bytes == 7 * TOKEN_BYTES
    found = {(1, 2, 3, 9): 3, (1, 2, 5, 6, 7, 8): 5, (1, 9): 1, (2,): 0}
    assert {ids: length(cache, ids) for ids in found} == found
    cache.check_integrity()


def test_a_split_gives_bytes_back() -> None:
    """Guards against views: after a split and the eviction of one half, only the other half's memory is held."""
    cache = PrefixCache(100 * TOKEN_BYTES)
    put(cache, [1, 2, 3, 4])
    lease = cache.match([1, 2])
    (run,) = lease.runs()
    assert run.keys[0].untyped_storage().nbytes() == TOKEN_BYTES  # half of two tokens: the keys alone


def test_least_recently_used_goes_first() -> None:
    """Guards the order of eviction: leaves before what they stand on, the older use before the newer."""
    cache = PrefixCache(6 * TOKEN_BYTES)
    put(cache, [1, 1])
    put(cache, [2, 2])
    put(cache, [1, 1, 3])
    assert length(cache, [2, 2]) == 2
    put(cache, [4, 4])
    assert [length(cache, ids) for ids in ([1, 1, 3], [2, 2], [4, 4])] == [2, 2, 2]
    cache.check_integrity()


def test_pinned_stays_and_the_bound_holds() -> None:
    """Guards running requests' prefixes: a full cache of pinned ones takes nothing more, and a prefix longer than the
    whole cache leaves its start."""
    cache = PrefixCache(5 * TOKEN_BYTES)
    put(cache, [1, 1, 1])
    lease = cache.match([1, 1, 1])
    put(cache, [2, 2, 2, 2, 2, 2, 2])
    assert [length(cache, ids) for ids in ([1, 1, 1], [2] * 7)] == [3, 2]
    cache.release(lease)
    put(cache, [2, 2, 2, 2, 2, 2, 2])
    assert [length(cache, ids) for ids in ([1, 1, 1], [2] * 7)] == [0, 5]
    with pytest.raises(AssertionError, match="released once"):
        cache.release(lease)
    cache.check_integrity()


@pytest.mark.parametrize("seed", range(4))
def test_random_operations(seed: int) -> None:
    """Guards the tree against a plain model of it: every match is a prefix that was inserted, with the right KV;
    without eviction it is the longest; what is pinned stays to its full length."""
    rng = random.Random(seed)
    bound = 40 if seed % 2 else 100_000
    cache, inserted, leases = PrefixCache(bound * TOKEN_BYTES), [()], list[tuple[Lease, tuple[int, ...]]]()
    for _ in range(400):
        ids = tuple(rng.randrange(3) for _ in range(rng.randint(1, 12)))
        action = rng.choice(("insert", "match", "match", "release"))
        if action == "insert":
            put(cache, ids)
            inserted.append(ids)
        elif action == "match" and len(leases) < 4:
            leases.append((cache.match(ids), ids))
            known = max(
                n for other in inserted for n in range(len(ids) + 1) if ids[:n] == other[:n] and n <= len(other)
            )
            assert leases[-1][0].num_tokens <= known
            assert bound == 40 or leases[-1][0].num_tokens == known
        elif leases:
            cache.release(leases.pop(rng.randrange(len(leases)))[0])
        for lease, own in leases:
            check_content(lease, own)
            assert length(cache, own) >= lease.num_tokens
        cache.check_integrity()


@pytest.fixture
def cached(model_dir: Path) -> Engine:
    return Engine(EngineConfig(model=str(model_dir), prefill_chunk=16))


def answer(engine: Engine, ids: list[int], num_tokens: int = 12) -> tuple[list[int], int]:
    """A greedy answer, and how many steps it took."""
    branch = engine.open(ids, sampling=Sampling())
    steps = 0
    while len(branch.tokens) < len(ids) + num_tokens:
        engine.step()
        steps += 1
    tokens = branch.tokens[len(ids) :]
    engine.free(branch)
    engine.prefixes.cache.check_integrity()
    return tokens, steps


def test_a_shared_prompt_is_prefilled_once(cached: Engine, model_dir: Path) -> None:
    """Guards what the cache is for, and that it changes nothing: the second request with a system prompt feeds only
    its own part, and its answer is that of an engine without a cache."""
    plain = Engine(EngineConfig(model=str(model_dir), prefill_chunk=16, prefix_cache_bytes=0))
    system = prompt(1, 100)
    for number in range(3):
        ids = [*system, *prompt(20 + number, 9)]
        tokens, steps = answer(cached, ids)
        assert tokens == answer(plain, ids)[0]
        assert steps == (7 if number == 0 else 1) + 11
    assert answer(cached, ids)[1] == 12, "the last token of a prompt that is there is fed for its logits"
    assert (cached.num_prefix_tokens, cached.num_prefix_hits) == (4 * 108, 100 + 100 + 108)
    assert plain.num_prefix_tokens == 0


def test_the_next_turn_of_a_chat(cached: Engine) -> None:
    """Guards chats: a turn that starts with the last one's prompt and answer prefills only what is new."""
    first = prompt(2, 50)
    reply, _ = answer(cached, first, 20)
    _, steps = answer(cached, [*first, *reply, *prompt(3, 10)], 4)
    assert cached.num_prefix_hits == 50 + 19, "the reply's last token was never fed"
    assert steps == 1 + 3


def test_only_a_plain_chain_is_kept(cached: Engine) -> None:
    """Guards against KV that depends on more than the tokens before it: behind a gap or a join nothing is reused."""

    def branches(main: Branch) -> list[int]:
        cached.step()
        child = cached.fork(main, [5], path="0.0", gap=10)
        cached.feed(main, [6, 7, 8])
        cached.step()
        cached.join(main, [child])
        return [6, 7, 8]

    ids = prompt(4, 12)
    main = cached.open(ids)
    later = branches(main)
    cached.free(main)
    lease = cached.prefixes.cache.match([*ids, *later])
    assert lease.num_tokens == 12
    cached.prefixes.cache.release(lease)
    joined = cached.open(prompt(5, 12))
    cached.step()
    child = cached.fork(joined, [5], path="0.0")
    cached.feed(joined, [6])
    cached.step()
    cached.join(joined, [child])
    cached.feed(joined, [7])
    cached.step()
    cached.free(joined)
    assert cached.prefixes.cache.match([*prompt(5, 12), 6, 7]).num_tokens == 13


def test_a_branch_that_keeps_its_logits_computes_them(cached: Engine) -> None:
    """Guards replay: logits of every token are given though the prompt is in the cache."""
    ids = prompt(6, 30)
    answer(cached, ids)
    branch = cached.open(ids, keep_logits=True)
    rows = [output.logits for _ in range(2) for output in cached.step()]
    assert sum(len(logits) for logits in rows if logits is not None) == 30
    cached.free(branch)
