"""The policy of every family, saved either way, against the engine that is to serve it."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.replaying import replay_tokens
from pasta_ray.errors import InputError
from pasta_ray.lang import TagMap, layout
from pasta_ray.train.config import RunConfig
from pasta_ray.train.data import Batch, Encoder, Example, collate
from pasta_ray.train.policy import Policy, load_policy
from pasta_ray.train.saving import save_adapter, save_model
from tests.engine.conftest import VOCAB, prompt, random_document
from tests.engine.test_families import FAMILIES, save_family
from tests.engine.test_tokenizer import save_tokenizer

TAGS = TagMap.after(VOCAB)
PROMPT = prompt(1, 9)
DOCUMENT = random_document(random.Random(5), TAGS)


class Words:
    """A tokenizer of a vocabulary as small as the models'."""

    stop_ids = (0,)

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def decode(self, ids: object) -> str:
        raise NotImplementedError

    def encode_chat(self, messages: object) -> list[int]:
        raise NotImplementedError


def randomise(policy: Policy) -> Policy:
    """LoRA's B starts at zero, which would hide a wrong merge: every trained parameter is random here,
    and survives being saved in bfloat16."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_((parameter + torch.randn_like(parameter) * 0.1).bfloat16())
    return policy.eval()


def batch() -> Batch:
    form = layout(DOCUMENT, PROMPT)
    return collate([Example("d", form, (0,) * len(form.ids))])


def assert_equal(policy: Policy, engine: Engine) -> None:
    packed = batch()
    with torch.no_grad():
        trained = policy(packed)
    replayed = replay_tokens(engine, PROMPT, DOCUMENT)[packed.sources]
    assert trained.shape == replayed.shape
    assert torch.allclose(trained, replayed, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_every_family(family: str, tmp_path: Path) -> None:
    """Guards embeddings' scale, windows, caps and untied heads: each would go wrong silently."""
    folder = save_family(tmp_path / "base", family)
    policy = load_policy(RunConfig(name="x", model=str(folder), lora_rank=2), Encoder(Words(), TAGS))
    assert all(row.requires_grad for row in policy.rows.values())
    save_adapter(randomise(policy), tmp_path / "adapter")
    assert_equal(policy, Engine(EngineConfig(model=str(folder), adapter=str(tmp_path / "adapter"))))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_full_checkpoint(family: str, tmp_path: Path) -> None:
    """Guards tied and untied vocabularies grown by the tags, for the engine, for transformers, and for the next run."""
    base = save_tokenizer(save_family(tmp_path / "base", family))
    config = RunConfig(name="x", model=str(base), mode="full")
    policy = randomise(load_policy(config, Encoder(Words(), TAGS)))
    folder = tmp_path / "full"
    save_model(policy, base, folder)
    assert TagMap.load(folder) == TAGS
    assert_equal(policy, Engine(EngineConfig(model=str(folder))))
    assert AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.shape[0] == VOCAB + 6
    for mode in ("full", "lora"):
        again = load_policy(RunConfig(name="y", model=str(folder), mode=mode), Encoder(Words(), TAGS)).eval()
        with torch.no_grad():
            assert torch.allclose(again(batch()), policy(batch()), atol=1e-5)


def test_a_run_starts_from_an_adapter(tmp_path: Path) -> None:
    """Guards stage 2's start: the same logits as what stage 1 saved; what does not fit is named."""
    folder = save_family(tmp_path / "base", "mistral")
    config = RunConfig(name="x", model=str(folder), lora_rank=2, lora_alpha=6)
    encoder = Encoder(Words(), TAGS)
    save_adapter(randomise(first := load_policy(config, encoder)), tmp_path / "adapter")
    config = config.model_copy(update={"init_adapter": tmp_path / "adapter"})
    second = load_policy(config, encoder).eval()
    with torch.no_grad():
        assert torch.allclose(first(batch()), second(batch()), atol=1e-5)
    with pytest.raises(InputError, match="lora_rank is 4"):
        load_policy(config.model_copy(update={"lora_rank": 4}), encoder)
    with pytest.raises(InputError, match="lora_alpha is 8"):
        load_policy(config.model_copy(update={"lora_alpha": 8}), encoder)
    with pytest.raises(InputError, match="tags"):
        load_policy(config, Encoder(Words(), TagMap.after(VOCAB + 6)))
    with pytest.raises(InputError, match="nowhere"):
        load_policy(config.model_copy(update={"init_adapter": tmp_path / "nowhere"}), encoder)


def test_a_run_with_tags_starts_from_an_adapter_without(tmp_path: Path) -> None:
    """Guards teaching tags to a model that was tuned without: its matrices are taken over, and the tags' rows are those
    of a new run."""
    folder = save_family(tmp_path / "base", "llama")
    config = RunConfig(name="x", model=str(folder), lora_rank=2)
    save_adapter(randomise(first := load_policy(config, Encoder(Words(), None))), tmp_path / "plain")
    fresh = load_policy(config, Encoder(Words(), TAGS))
    again = load_policy(config.model_copy(update={"init_adapter": tmp_path / "plain"}), Encoder(Words(), TAGS))
    for name, row in fresh.rows.items():
        assert torch.equal(again.rows[name], row)
    plain, taken = first.model.state_dict(), again.model.state_dict()
    assert any("lora_B" in name for name in plain)
    assert all(torch.equal(taken[name], value) for name, value in plain.items() if "lora_" in name)


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path) -> None:
    """Guards activation checkpointing, which with frozen embeddings easily gives none at all."""
    folder = save_family(tmp_path / "base", "llama")
    gradients = []
    for recompute in (False, True):
        config = RunConfig(name="x", model=str(folder), lora_rank=2, activation_checkpointing=recompute)
        torch.manual_seed(2)
        policy = randomise(load_policy(config, Encoder(Words(), TAGS))).train()
        policy(batch()).logsumexp(-1).sum().backward()
        gradients.append([p.grad for p in policy.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert plain.abs().max() > 0
        assert torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-5)
