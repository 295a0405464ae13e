"""Sequential decoding, chunked prefill and continuous batching, against transformers."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.messages import Sampling
from pasta_ray.errors import InputError
from tests.engine.conftest import decode, generate, prompt, save_model


def test_greedy_equals_transformers(engine: Engine, reference: PreTrainedModel) -> None:
    """Guards the whole forward pass: requests of many lengths in one batch each decode as if alone."""
    prompts = [prompt(seed, length) for seed, length in enumerate((1, 2, 15, 16, 17, 70))]
    branches = [engine.open(ids, sampling=Sampling()) for ids in prompts]
    assert decode(engine, branches, 24) == [generate(reference, ids, 24) for ids in prompts]


@pytest.mark.parametrize("tied", [True, False])
def test_untied_head_and_biases(tmp_path: Path, tied: bool) -> None:
    """Guards against a head or a bias that is silently left out."""
    from transformers import LlamaForCausalLM

    save_model(tmp_path, tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                tensor.normal_()
    model.save_pretrained(tmp_path)
    engine = Engine(EngineConfig(model=str(tmp_path)))
    assert engine.tags is None
    ids = prompt(1, 9)
    assert decode(engine, [engine.open(ids, sampling=Sampling())], 16) == [generate(model, ids, 16)]


def test_prompt_logits_equal_transformers(engine: Engine, reference: PreTrainedModel) -> None:
    """Guards chunk borders: a prompt prefilled in chunks of 16 gives the logits of one pass."""
    ids = prompt(3, 45)
    branch = engine.open(ids, keep_logits=True)
    parts = [output.logits for _ in range(3) for output in engine.step()]
    assert not engine.has_work
    engine.free(branch)
    logits = torch.cat([part for part in parts if part is not None])
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_neighbours_do_not_change_logits(engine: Engine) -> None:
    """Guards batch invariance: another request's rows or branches leak into nobody's attention."""

    def logits(num_neighbours: int) -> torch.Tensor:
        neighbours = [engine.open(prompt(50 + i, 5 + 7 * i), sampling=Sampling()) for i in range(num_neighbours)]
        branch = engine.open(prompt(4, 20), keep_logits=True)
        rows = []
        for token in (None, 3, 1, 4, 1, 5):
            if token is not None:
                engine.feed(branch, [token])
            while branch.num_pending:
                rows += [o.logits for o in engine.step() if o.branch is branch and o.logits is not None]
        for other in (branch, *neighbours):
            engine.free(other)
        return torch.cat(rows)

    torch.testing.assert_close(logits(5), logits(0), atol=1e-4, rtol=0)


def test_long_prompt_does_not_stall_a_decoding_branch(engine: Engine) -> None:
    """Guards chunked prefill: while 100 prompt tokens go in by chunks of 16, another branch gets a token every step."""
    first = engine.open(prompt(5, 4), sampling=Sampling())
    engine.step()
    second = engine.open(prompt(6, 100), sampling=Sampling())
    for _ in range(6):
        assert [output.branch for output in engine.step()] == [first]
    assert [output.branch for output in engine.step()] == [first, second]
    engine.free(first)
    engine.free(second)


def test_slab_growth_keeps_the_cache(engine: Engine, reference: PreTrainedModel) -> None:
    """Guards the copy on growth, and its cost: an answer that crosses two capacities goes on as before, and less is
    copied than the slab holds in the end."""
    ids = prompt(8, 60)
    branch = engine.open(ids, sampling=Sampling())
    slab = branch.slab
    capacities: set[int] = set()
    sampled: list[int] = []
    while len(sampled) < 140:
        sampled += [token for output in engine.step() for token in output.tokens]
        capacities.add(slab.capacity)
    assert engine.kv_bytes == slab.kv_bytes == 256 * slab.shape.bytes_per_slot
    engine.free(branch)
    assert sampled == generate(reference, ids, 140)
    assert capacities == {64, 128, 256}
    assert slab.bytes_copied == (64 + 128) * slab.shape.bytes_per_slot
    assert (slab.kv_bytes, engine.kv_bytes) == (0, 0)


def test_free_in_mid_decode(engine: Engine) -> None:
    """Guards cancellation: freeing a request with forks and pending tokens leaves no slot and no branch, and its
    neighbour goes on."""
    other = engine.open(prompt(9, 3), sampling=Sampling())
    branch = engine.open(prompt(10, 40), sampling=Sampling())
    engine.step()
    child = engine.fork(branch, [1, 2], path="0.0", gap=10, sampling=Sampling())
    for _ in range(4):
        engine.step()
    assert engine.num_branches == 3
    engine.free(branch)
    engine.free(child)
    assert (engine.num_branches, engine.num_slots) == (1, len(other.tokens))
    assert [output.branch for output in engine.step()] == [other]
    engine.free(other)
    assert engine.step() == []


def test_prompt_errors(engine: Engine) -> None:
    """Guards users against tracebacks from inside torch: a prompt that cannot be used is refused by what is wrong."""
    with pytest.raises(InputError, match="empty"):
        engine.open([])
    with pytest.raises(InputError, match="allowed: 0 to 95"):
        engine.open([5, 96])
    with pytest.raises(InputError, match="allowed: below 4096"):
        engine.open([1] * 4096)


def test_bfloat16_stays_close(model_dir: Path, reference: PreTrainedModel) -> None:
    """Guards the second dtype: bfloat16 runs, and gives float32's logits within its own precision."""
    engine = Engine(EngineConfig(model=str(model_dir), dtype="bfloat16"))
    ids = prompt(11, 30)
    branch = engine.open(ids, keep_logits=True)
    (output,) = engine.step()
    engine.free(branch)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0]
    assert output.logits is not None
    assert torch.nn.functional.cosine_similarity(output.logits, expected).min() > 0.98
