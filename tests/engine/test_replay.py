"""Equivalence: documents through fork, step and join against one forward pass with the layout's mask."""

import random
from dataclasses import replace

import pytest
from transformers import PreTrainedModel

from pasta_ray.engine import Engine
from pasta_ray.engine.messages import Sampling
from pasta_ray.engine.replaying import replay_tokens
from pasta_ray.lang import PositionStrategy, TagMap, layout
from tests.engine.conftest import layout_logits, prompt, random_document


@pytest.mark.parametrize(("positions", "num_documents"), [("pred-10x", 200), ("pred-1x", 30), ("fixed-7", 30)])
def test_random_documents(
    engine: Engine, reference: PreTrainedModel, tags: TagMap, positions: str, num_documents: int
) -> None:
    """Guards the property that everything rests on, for documents of every position strategy, with a changing number of
    other requests that decode in the same batches."""
    rng = random.Random(2)
    tags = replace(tags, positions=PositionStrategy.named(positions))
    worst = 0.0
    for number in range(num_documents):
        document, ids = random_document(rng, tags), prompt(number, rng.randint(1, 40))
        neighbours = [engine.open(prompt(i, 9), sampling=Sampling()) for i in range(number % 3)]
        logits = replay_tokens(engine, ids, document)
        for branch in neighbours:
            engine.free(branch)
        expected = layout_logits(reference, layout(document, ids))
        assert logits.shape == expected.shape
        worst = max(worst, float((logits - expected).abs().max()))
    assert worst < 1e-4
