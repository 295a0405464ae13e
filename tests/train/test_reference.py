"""The initial model's log-probabilities, of one worker and a policy as it is: values, and when they are used again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pasta_ray.train.config import RunConfig
from pasta_ray.train.data import Batch, Encoder, Example, Record, build_example, collate
from pasta_ray.train.loop import load_encoder
from pasta_ray.train.policy import Policy, load_policy
from pasta_ray.train.reference import model_key, reference_log_probs
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer


@pytest.fixture(scope="module")
def encoder_and_policy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Policy]:
    folder = save_tokenizer(save_model(tmp_path_factory.mktemp("model"), vocab_size=300))
    config = RunConfig(name="x", model=str(folder), lora_rank=2)
    encoder = load_encoder(config)
    return encoder, load_policy(config, encoder)


@pytest.fixture(autouse=True)
def _group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/group")
    yield
    dist.destroy_process_group()


class Counted(torch.nn.Module):
    """A policy that counts its calls, and must not be training when called."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy, self.calls, self.device = policy, 0, policy.device

    def forward(self, batch: Batch) -> torch.Tensor:
        assert not self.training
        self.calls += 1
        return self.policy(batch)


def example(encoder: Encoder, name: str) -> Example:
    text = f'{name}<promise topic="t" tokens="10"/><async> a</async> b'
    return build_example(Record(id=name, instruction="Say", document=text), encoder.tokenizer, encoder.tags)


def test_values_are_sums_over_each_response(encoder_and_policy: tuple[Encoder, Policy], tmp_path: Path) -> None:
    """Guards against neighbours in a row that share their sums: packed or alone, each response has its own."""
    encoder, policy = encoder_and_policy
    a, b = example(encoder, "a"), example(encoder, "longer b")
    engine = Counted(policy)
    engine.train()
    values = reference_log_probs(engine, [[a, b]], tmp_path / "r.jsonl", lambda: "model")
    assert engine.training
    for one in (a, b):
        batch = collate([one])
        expected = torch.log_softmax(policy(batch), -1)[torch.arange(len(batch.labels)), batch.labels].sum()
        assert values[one.id] == pytest.approx(expected.item(), abs=1e-4)


def test_they_are_used_again_only_where_nothing_has_changed(
    encoder_and_policy: tuple[Encoder, Policy], tmp_path: Path
) -> None:
    """Guards a run that goes on against a second pass, against values of another model or another text, and against
    the half line that a killed worker left."""
    encoder, policy = encoder_and_policy
    path = tmp_path / "r.jsonl"

    def ask(rows: list[list[Example]], model: str) -> tuple[dict[str, float], int]:
        engine = Counted(policy)
        return reference_log_probs(engine, rows, path, lambda: model), engine.calls

    rows = [[example(encoder, "a")], [example(encoder, "b")]]
    values, calls = ask(rows, "model")
    assert calls == 2
    assert ask(rows, "model") == (values, 0)
    assert ask(rows, "other")[1] == 2
    changed = replace(rows[1][0], id="a")
    assert ask([[changed]], "model") == ({"a": values["b"]}, 0), "told by content, not by name"
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    again, calls = ask(rows, "other")
    assert (again, calls) == (values, 1)
    assert ask(rows, "other") == (values, 0)


def test_a_model_is_told_by_its_files(tmp_path: Path) -> None:
    """Guards against a cache that outlives a change of weights, or of what they are computed in."""
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(b"a")
    first = model_key([path], "fp32")
    assert model_key([path], "bf16") != first
    path.write_bytes(b"b")
    assert model_key([path], "fp32") != first
