"""Small random models: every weight matters and no two logits nearly tie, so one wrong slot or position shows."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.branch import Branch
from pasta_ray.lang import Layout, TagMap, TokenDocument, TokenPromise, TokenSync, TokenText
from pasta_ray.lang.tokens import TokenNode

VOCAB = 96


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
    "eos_token_id": None,
    "bos_token_id": None,
}


def save_model(folder: Path, **changes: object) -> Path:
    """A Llama of 3 layers, 4 heads on 2 KV heads, saved as safetensors. No tokenizer."""
    settings = SMALL | {"tie_word_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        LlamaForCausalLM(LlamaConfig(**(settings | changes))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tags() -> TagMap:
    return TagMap.after(VOCAB - 6)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tags: TagMap) -> Path:
    """A full checkpoint whose own vocabulary holds the tags."""
    folder = save_model(tmp_path_factory.mktemp("model"))
    tags.save(folder)
    return folder


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> PreTrainedModel:
    """The same model in transformers."""
    return LlamaForCausalLM.from_pretrained(model_dir, attn_implementation="sdpa").eval()


@pytest.fixture(scope="session")
def shared_engine(model_dir: Path) -> Engine:
    return Engine(EngineConfig(model=str(model_dir), prefill_chunk=16))


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """The shared engine; a test that leaves a slot in use fails."""
    yield shared_engine
    assert (shared_engine.num_slots, shared_engine.num_branches) == (0, 0)


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB - 6) for _ in range(length)]


def random_document(rng: random.Random, tags: TagMap) -> TokenDocument:
    """Any document: text, promises with good and bad predictions, syncs, in any order."""

    def text(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB - 6) for _ in range(rng.randint(low, high)))

    nodes: list[TokenNode] = []
    num_open = 0
    for _ in range(rng.randint(1, 9)):
        kind = rng.choice(("text", "promise", "promise", "sync" if num_open else "text"))
        if kind == "text":
            nodes.append(TokenText(text(1, 6)))
        elif kind == "sync":
            nodes.append(TokenSync(tags.sync))
            num_open = 0
        else:
            head = (tags.promise, *text(1, 3), tags.tokens, *text(1, 2), tags.promise_end)
            num_tokens = tags.positions.unit * rng.randint(1, 30 // tags.positions.unit)
            body = (tags.async_, *text(0, 12), tags.async_end)
            nodes.append(TokenPromise(head, num_tokens, body, tags.positions))
            num_open += 1
    return TokenDocument(tuple(nodes))


def decode(engine: Engine, branches: list[Branch], num_tokens: int) -> list[list[int]]:
    """What each branch samples, ``num_tokens`` each; frees the branches."""
    sampled: dict[Branch, list[int]] = {branch: [] for branch in branches}
    while any(len(tokens) < num_tokens for tokens in sampled.values()):
        for output in engine.step():
            assert output.tokens
            sampled[output.branch] += output.tokens
    for branch in branches:
        engine.free(branch)
    return [tokens[:num_tokens] for tokens in sampled.values()]


def generate(reference: PreTrainedModel, ids: list[int], num_tokens: int) -> list[int]:
    out = reference.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()


def layout_mask(form: Layout, window: int | None = None) -> torch.Tensor:
    """Additive [1, 1, T, T]: what the layout shows each token, less what stands ``window`` or more before it."""
    mask = torch.full((1, 1, len(form.ids), len(form.ids)), torch.finfo(torch.float32).min)
    for token, ranges in enumerate(form.visible):
        for start, end in ranges:
            mask[0, 0, token, start:end] = 0.0
    if window is not None:
        positions = torch.tensor(form.positions)
        mask[0, 0, positions[:, None] - positions >= window] = torch.finfo(torch.float32).min
    return mask


def layout_logits(reference: PreTrainedModel, form: Layout) -> torch.Tensor:
    mask = layout_mask(form)
    with torch.no_grad():
        ids, positions = torch.tensor([form.ids]), torch.tensor([form.positions])
        return reference(ids, attention_mask=mask, position_ids=positions).logits[0]
