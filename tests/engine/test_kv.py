"""KV that crosses engines: what is decoded with it is what would have been decoded without."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.blocks import BLOCK_TOKENS, Chain, block_names
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.guest import context_of, open_body
from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.messages import BodyRequest, Sampling
from pasta_ray.engine.moving import fits, put_kv, take_kv
from pasta_ray.engine.prefix_store import PrefixStore
from pasta_ray.engine.replaying import replay_tokens
from pasta_ray.lang import TagMap, TokenDocument, TokenPromise, TokenSync
from tests.engine.conftest import prompt, random_document, save_model

TOLERANCE = 1e-3


def make_engine(folder: Path, **settings: int) -> Engine:
    return Engine(EngineConfig(model=str(folder), prefill_chunk=16, **settings))


@pytest.fixture
def first(model_dir: Path) -> Engine:
    return make_engine(model_dir)


@pytest.fixture
def second(model_dir: Path) -> Engine:
    return make_engine(model_dir)


def logits_behind(engine: Engine, ids: Sequence[int]) -> torch.Tensor:
    """Of the last token of ``ids``; what is before it may come from the prefix cache."""
    main = engine.open(ids[:-1])
    child = engine.fork(main, ids[-1:], path="0.1", keep_logits=True)
    while child.num_pending:
        outputs = engine.step()
    (logits,) = [output.logits for output in outputs if output.branch is child]
    assert logits is not None
    engine.free(main)
    engine.check_integrity()
    return logits[-1]


def test_a_prefix_from_another_engine_gives_the_same_logits(first: Engine, second: Engine) -> None:
    """Guards the whole way: out of a tree that has been split, in pieces, into a tree that has some of it."""
    rng = random.Random(0)
    source, target = PrefixStore(first), PrefixStore(second)
    system = prompt(1, 70)
    for number in range(12):
        ids = [*system[: rng.randint(1, 70)], *prompt(30 + number, rng.randint(2, 40))]
        expected = logits_behind(first, ids)
        start = 0
        while start < len(ids) - 1:
            block = source.take(ids[: rng.randint(start + 1, len(ids))], start)
            if block is None:
                break
            assert target.put(ids, start, block) == block.num_tokens
            start += block.num_tokens
        before = second.num_prefix_hits
        torch.testing.assert_close(logits_behind(second, ids), expected, atol=TOLERANCE, rtol=0)
        assert second.num_prefix_hits - before == len(ids) - 2, "all but the last prompt token, fed for the logits"


def test_what_does_not_follow_is_not_kept(first: Engine, second: Engine) -> None:
    """Guards against a hole: KV whose beginning is not there is no prefix, and what is not there is not given."""
    ids = prompt(2, 40)
    logits_behind(first, ids)
    block = PrefixStore(first).take(ids, 10)
    assert block is not None
    assert PrefixStore(second).put(ids, 10, block) == 0
    assert second.prefixes.cache.num_bytes == 0
    assert PrefixStore(first).take(ids, 40) is None
    assert PrefixStore(first).take(prompt(3, 5), 0) is None


def test_names_are_of_whole_blocks_and_of_one_kind_of_kv(first: Engine, tmp_path: Path, tags: TagMap) -> None:
    """Guards against a name that stands for two prefixes, of other tokens, weights, numerics or tags."""
    store = PrefixStore(first)
    long = prompt(4, 3 * BLOCK_TOKENS + 5)
    for ids in (long, [*long[:40], *prompt(5, 40)]):
        logits_behind(first, ids)
    names = block_names(store.key, long[:-1])
    assert len(names) == 3
    other = block_names(store.key, [*long[:40], *prompt(5, 39)])
    assert (len(other), other[0]) == (2, names[0])
    assert store.names() == {*names, *other}
    chain, pieces = Chain.of(store.key), []
    for piece in (long[:1], long[1:50], long[50:]):
        chain, found = chain.extended(piece)
        pieces += found
    assert pieces == names
    folder = save_model(tmp_path)
    tags.save(folder)
    same, bfloat16 = make_engine(folder), Engine(EngineConfig(model=str(folder), dtype="bfloat16"))
    assert PrefixStore(same).key == store.key
    TagMap.after(tags.promise, type(tags.positions).named("pred-1x")).save(folder)
    keys = {store.key, PrefixStore(bfloat16).key, PrefixStore(make_engine(folder)).key}
    assert len(keys) == 3
    assert not {*names} & {*block_names(PrefixStore(bfloat16).key, long)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slots_come_and_go_bit_for_bit(model_dir: Path, dtype: str) -> None:
    """Guards the form in which KV travels, also of numbers that numpy does not know; the array may be read-only."""
    engine = Engine(EngineConfig(model=str(model_dir), dtype=dtype))
    main = engine.open(prompt(6, 30))
    engine.step()
    slots = [3, 4, 9, 20, 2]
    block = take_kv(main.slab, slots)
    data = block.data.copy()
    data.flags.writeable = False
    copied = KVBlock(data)
    assert fits(copied, engine.model.kv_shape)
    before = [tensor.clone() for tensor in (*main.slab.keys, *main.slab.values)]
    with torch.inference_mode():
        for tensor in (*main.slab.keys, *main.slab.values):
            tensor[:, slots] = 0
        put_kv(main.slab, slots, copied)
    assert all(map(torch.equal, before, (*main.slab.keys, *main.slab.values)))
    engine.free(main)


class FarmedReplay:
    """A document through ``home``, whose bodies are decoded on ``away``. If ``forgets``, either loses all its KV now
    and then. ``rows`` are the logits behind each token of each branch, ``places`` say where the layout's tokens are."""

    def __init__(self, home: Engine, away: Engine, rng: random.Random, forgets: bool) -> None:
        self.home, self.away, self.rng, self.forgets = home, away, rng, forgets
        self.rows: dict[tuple[str, int], torch.Tensor] = {}
        self.places: list[tuple[str, int]] = []
        self.unsynced: list[Branch] = []
        self.coming: list[tuple[Branch, tuple[int, ...], KVBlock]] = []
        self.num_away = 0

    def run(self, prompt_ids: list[int], document: TokenDocument) -> torch.Tensor:
        self.main = self.home.open(prompt_ids, keep_logits=True)
        self.places += [(self.main.path, index) for index in range(len(prompt_ids))]
        self.settle(self.home, self.main)
        for node in document.nodes:
            if isinstance(node, TokenPromise):
                self.promise(node)
            elif isinstance(node, TokenSync):
                self.arrive()
                self.home.join(self.main, self.unsynced)
                self.unsynced = []
                self.write([node.id])
            else:
                self.write(node.ids)
            if self.rng.random() < 0.3:
                self.arrive()
        self.arrive()
        self.settle(self.home, self.main)
        self.home.check_integrity()
        self.home.free(self.main)
        return torch.stack([self.rows[place] for place in self.places])

    def write(self, ids: Sequence[int]) -> None:
        for token in ids:
            self.places.append((self.main.path, len(self.main.tokens)))
            self.home.feed(self.main, [token])
            self.settle(self.home, self.main)

    def promise(self, promise: TokenPromise) -> None:
        self.write(promise.head[:-1])
        self.places.append((self.main.path, len(self.main.tokens)))
        self.home.feed(self.main, promise.head[-1:])
        path = f"0.{len(self.places)}"
        self.places += [(path, index) for index in range(len(promise.body))]
        body = self.home.fork(self.main, promise.body[:1], path=path, gap=promise.gap, keep_logits=True)
        self.unsynced.append(body)
        context = context_of(self.home, body)
        if context is None:
            self.home.feed(body, promise.body[1:])
            return
        self.home.hold(body)
        self.settle(self.home, self.main)
        request = BodyRequest("r", path, "", context, promise.body[:1], 1000, Sampling())
        self.coming.append((body, promise.body[1:], self.decode_away(request, promise.body)))
        self.num_away += 1

    def decode_away(self, request: BodyRequest, body: Sequence[int]) -> KVBlock:
        guest = open_body(self.away, request, keep_logits=True)
        self.away.settle(guest)
        for token in body[1:]:
            self.settle(self.away, guest)
            self.away.feed(guest, [token])
        if guest.num_pending > 1 or not guest.slab.resident:
            self.away.hold(guest)
            self.settle(self.away, guest)
        block = take_kv(guest.slab, guest.slots[:-1])
        self.away.check_integrity()
        self.away.free(guest)
        return block

    def arrive(self) -> None:
        """What has been decoded away comes home, in pieces."""
        for body, tokens, block in self.coming:
            middle = self.rng.randrange(len(tokens))
            self.home.receive(body, tokens[:middle])
            self.home.receive(body, tokens[middle:], block)
        self.coming = []

    def settle(self, engine: Engine, branch: Branch) -> None:
        """Step until nothing waits."""
        if self.forgets and self.rng.random() < 0.2:
            engine.tenant(branch).preempt()
        while engine.has_work:
            for output in engine.step():
                assert output.logits is not None
                for offset, row in enumerate(reversed(output.logits), 1):
                    key = (output.branch.path, output.branch.num_fed - offset)
                    assert key not in self.rows, "nothing is computed twice"
                    self.rows[key] = row


@pytest.mark.parametrize("forgets", [False, True])
def test_bodies_decoded_elsewhere_give_the_same_logits(
    model_dir: Path, first: Engine, second: Engine, tags: TagMap, forgets: bool
) -> None:
    """Guards what a body sees there, what comes back of it, and what is seen of that behind a sync: all logits are
    those of one engine, also where an engine loses its KV in between."""
    alone = make_engine(model_dir, prefix_cache_bytes=0)
    rng = random.Random(8 + forgets)
    num_away = 0
    for number in range(30):
        ids, document = prompt(100 + number % 3, 20), random_document(rng, tags)
        replay = FarmedReplay(first, second, rng, forgets)
        torch.testing.assert_close(
            replay.run(ids, document), replay_tokens(alone, ids, document), atol=TOLERANCE, rtol=0
        )
        num_away += replay.num_away
    assert num_away > 30
    assert second.num_prefix_hits > 10 * num_away, "the prompt's KV is there from the second body on"
    assert (first.num_slots, second.num_slots) == (0, 0)
