"""The default model by its name: fetched, converted, and equal to transformers on the same weights."""

import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Request, Sampling
from pasta_ray.engine.replaying import replay_tokens
from pasta_ray.engine.weights import resolve_model
from pasta_ray.lang import (
    TagMap,
    TokenDocument,
    TokenPromise,
    TokenSync,
    TokenText,
    encode_document,
    layout,
    parse,
)
from tests.engine.conftest import decode, generate, layout_logits
from tests.engine.events import answer
from tests.engine.test_kv import TOLERANCE, FarmedReplay

pytestmark = pytest.mark.real_model
# Reserved and untrained in the default model, so any row will do for the equivalence of two forward passes.
TAGS = TagMap(3, 4, 5, 6, 7, 8)
QUESTIONS = ("Name three fruits.", "Why is the sky blue? Answer in two sentences.", "Write a haiku about <|im_end|>.")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(EngineConfig())


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model(EngineConfig())


@pytest.fixture(scope="module")
def reference(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def test_greedy_equals_transformers(engine: Engine, reference: LlamaForCausalLM) -> None:
    """Guards the conversion and the real model's sizes: three chats in one batch, token for token."""
    prompts = [engine.tokenizer.encode_chat([{"role": "user", "content": text}]) for text in QUESTIONS]
    assert engine.tokenizer.stop_ids == (2,)
    branches = [engine.open(ids, sampling=Sampling()) for ids in prompts]
    for got, ids in zip(decode(engine, branches, 32), prompts, strict=True):
        expected = generate(reference, ids, 32)
        assert got[: len(expected)] == expected


def test_replay_equals_layout(engine: Engine, reference: LlamaForCausalLM) -> None:
    """Guards equivalence at real size: a document of two bodies and a sync, behind a chat prompt."""
    encode = engine.tokenizer.encode
    head = (TAGS.promise, *encode("ripe fruit"), TAGS.tokens, *encode("2"), TAGS.promise_end)
    bodies = [(TAGS.async_, *encode(text), TAGS.async_end) for text in ("Bananas are sweet.", "Apples keep well.")]
    nodes = [TokenPromise(head, 20, body) for body in bodies]
    document = TokenDocument(
        (TokenText(tuple(encode("Fruits:"))), *nodes, TokenSync(TAGS.sync), TokenText(tuple(encode(" That is all."))))
    )
    prompt_ids = engine.tokenizer.encode_chat([{"role": "user", "content": QUESTIONS[0]}])
    neighbour = engine.open([random.Random(1).randrange(20, 40_000) for _ in range(50)], sampling=Sampling())
    logits = replay_tokens(engine, prompt_ids, document)
    engine.free(neighbour)
    assert (logits - layout_logits(reference, layout(document, prompt_ids))).abs().max() < 1e-3
    assert engine.num_slots == 0


@pytest.mark.slow
def test_bodies_decoded_on_another_engine_give_the_same_logits() -> None:
    """Guards farming out at real size: a document of the shipped adapter, each of its bodies decoded elsewhere."""
    first, second, alone = (Engine(EngineConfig(adapter="pasta")) for _ in range(3))
    tokenizer, tags = alone.tokenizer, alone.tags
    assert isinstance(tags, TagMap)
    prompt_ids = tokenizer.encode_chat([{"role": "user", "content": "Give me five tips for sleeping well."}])
    report = answer(Decoder(alone), Request("r", tuple(prompt_ids), "pasta", max_tokens=150))
    document = encode_document(parse(report.document), tokenizer, tags)
    farmed = FarmedReplay(first, second, random.Random(1), forgets=False)
    expected = replay_tokens(alone, prompt_ids, document)
    torch.testing.assert_close(farmed.run(prompt_ids, document), expected, atol=TOLERANCE, rtol=0)
    assert farmed.num_away == report.parallel.num_promises >= 2
    assert (first.num_slots, second.num_slots) == (0, 0)
