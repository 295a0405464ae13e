"""Equivalence: documents through fork, step and join against one forward pass with the layout's mask."""

import random

import torch
from transformers import PreTrainedModel

from pasta_ray.engine import Engine
from pasta_ray.engine.messages import Sampling
from pasta_ray.engine.replay import replay_tokens
from pasta_ray.lang import Layout, TagMap, layout
from tests.engine.conftest import prompt, random_document


def layout_logits(reference: PreTrainedModel, form: Layout) -> torch.Tensor:
    mask = torch.full((1, 1, len(form.ids), len(form.ids)), torch.finfo(torch.float32).min)
    for token, ranges in enumerate(form.visible):
        for start, end in ranges:
            mask[0, 0, token, start:end] = 0.0
    with torch.no_grad():
        ids, positions = torch.tensor([form.ids]), torch.tensor([form.positions])
        return reference(ids, attention_mask=mask, position_ids=positions).logits[0]


def test_random_documents(engine: Engine, reference: PreTrainedModel, tags: TagMap) -> None:
    """Guards the property that everything rests on, for 200 documents, with a changing number of other requests that
    decode in the same batches."""
    rng = random.Random(2)
    worst = 0.0
    for number in range(200):
        document, ids = random_document(rng, tags), prompt(number, rng.randint(1, 40))
        neighbours = [engine.open(prompt(i, 9), sampling=Sampling()) for i in range(number % 3)]
        logits = replay_tokens(engine, ids, document)
        for branch in neighbours:
            engine.free(branch)
        expected = layout_logits(reference, layout(document, ids))
        assert logits.shape == expected.shape
        worst = max(worst, float((logits - expected).abs().max()))
    assert worst < 1e-4
