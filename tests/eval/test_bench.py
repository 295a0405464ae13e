"""The parts that benchmarks are made of."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.eval.bench.figures import Result, interleave
from pasta_ray.eval.bench.machine import Machine, commit, measure_bandwidth
from pasta_ray.eval.bench.profile import products_alone, profile_step, weight_bytes
from pasta_ray.eval.bench.reference import Reference
from pasta_ray.eval.bench.workload import Decoding, decode, random_prompts
from tests.engine.conftest import VOCAB, save_model

MACHINE = Machine("test", 1, 1, 1, 1.0, 1.0, 1, None, "3", {}, "today")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    return EngineConfig(model=str(save_model(tmp_path_factory.mktemp("model"))), prefill_chunk=16)


@pytest.fixture(scope="module")
def engine(config: EngineConfig) -> Engine:
    return Engine(config)


def test_cases_alternate_and_warm_ups_are_thrown_away() -> None:
    """Guards A A A B B B, where a slow minute of the machine would look like a slow case."""
    order: list[str] = []

    def case(name: str) -> Callable[[], int]:
        def run() -> int:
            order.append(name)
            return len(order)

        return run

    said: list[str] = []
    samples = interleave({"a": case("a"), "b": case("b")}, num_warmups=1, num_reps=2, say=said.append)
    assert order == ["a", "b"] * 3
    assert samples == {"a": [3, 5], "b": [4, 6]}
    assert said[-1] == "round 3 of 3"


def test_a_figure_is_its_samples_median_and_spread() -> None:
    result = Result("test", MACHINE, {})
    result.add("a", "ms", list(range(11)))
    result.add("b", "ms", [2.0])
    result.compare("a / b", "a", "b")
    figure = result.figures["a"]
    assert (figure.median, figure.p10, figure.p90, figure.num_samples) == (5.0, 1.0, 9.0, 11)
    assert result.ratios["a / b"].value == 2.5


def test_a_profile_accounts_for_the_whole_step_and_leaves_the_engine_as_it_was(engine: Engine) -> None:
    """Guards parts that miss a call (an engine that no longer calls what is watched shows as 0), and a stopwatch that
    stays in the engine or changes what it computes."""
    layers, head, attention = engine.model.layers, engine.model.head, F.scaled_dot_product_attention
    decoding = Decoding(engine, random_prompts(1, 20, VOCAB), num_branches=3)
    profile = profile_step(engine, decoding)
    decoding.free()
    assert (engine.model.layers, engine.model.head) == (layers, head)
    assert F.scaled_dot_product_attention is attention
    assert len(profile.products) == 4 * len(layers) + 1
    assert {len(product.x) for product in profile.products} == {3}
    assert min(profile.gemm_s, profile.attention_s, profile.sampling_s, profile.rest_s) > 0
    assert products_alone(profile.products) > 0
    hidden, heads, kv_heads, mlp = 32, 32, 16, 48
    a_layer = hidden * (heads + 2 * kv_heads) + heads * hidden + 3 * hidden * mlp
    assert weight_bytes(engine, profile.products) == 4 * (len(layers) * a_layer + VOCAB * hidden)


def test_decodings_that_share_an_engine_step_alone(engine: Engine) -> None:
    """Guards a case that is timed with another case's branches in its batch."""
    prompts = random_prompts(3, 20, VOCAB)
    branches, requests = Decoding(engine, prompts[:1], num_branches=4), Decoding(engine, prompts)
    before = engine.num_slots
    branches.step()
    assert engine.num_slots == before + 4
    requests.step()
    assert engine.num_slots == before + 4 + 3
    branches.free()
    requests.free()
    assert (engine.num_slots, engine.num_branches) == (0, 0)


def test_the_reference_does_the_same_work(engine: Engine, config: EngineConfig) -> None:
    """Guards rates of different numbers of tokens, or of different answers."""
    (prompt,) = random_prompts(1, 20, VOCAB)
    ours, theirs = decode(engine, prompt, 12), Reference(config).decode(prompt, 12)
    assert ours.tokens == theirs.tokens
    assert len(ours.tokens) == 12
    assert min(ours.ttft_s, ours.decode_s, theirs.ttft_s, theirs.decode_s) > 0
    assert engine.num_slots == 0


def test_bandwidth_is_measured_for_each_number_of_threads_and_leaves_their_number() -> None:
    threads = torch.get_num_threads()
    start = time.perf_counter()
    one, two = measure_bandwidth(2**24, (1, 2))
    slowest = 2**24 / (time.perf_counter() - start) / 1e9
    assert min(one, two) > slowest, "the best of several reads is faster than all of them one after the other"
    assert torch.get_num_threads() == threads


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards a benchmark that fails for want of git."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
