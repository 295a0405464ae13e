"""The fast forms of a step's parts against the plain ones: fused operations, packed and int8 products."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel, Qwen3Config

from pasta_ray.engine import Engine, EngineConfig, int8
from pasta_ray.engine.architecture import Architecture
from pasta_ray.engine.fused import FusedOps
from pasta_ray.engine.int8 import Int8Linear
from pasta_ray.engine.linear import PackedLinear
from pasta_ray.engine.messages import Sampling
from pasta_ray.engine.ops import TorchOps
from pasta_ray.errors import InputError
from tests.engine.conftest import decode, prompt

ROWS = (1, 2, 3, 8, 33)


@pytest.fixture(params=["llama", "qwen3"])
def architecture(request: pytest.FixtureRequest) -> Architecture:
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[request.param]
    sizes = {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10}
    name = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[request.param]
    return Architecture.read(config(**sizes, num_hidden_layers=2, intermediate_size=24, architectures=[name]))


@pytest.mark.parametrize("num_rows", ROWS)
def test_fused_operations_equal_plain_ones(architecture: Architecture, num_rows: int) -> None:
    """Guards every fused loop: each gives what torch's own operations give, also in what it changes in place."""
    torch.manual_seed(num_rows)
    plain, fused = TorchOps(architecture), FusedOps(architecture)
    hidden, delta, weight = torch.randn(num_rows, 40), torch.randn(num_rows, 40), torch.randn(40)
    torch.testing.assert_close(fused.norm(hidden, weight), plain.norm(hidden, weight))
    hidden_too = hidden.clone()
    torch.testing.assert_close(fused.add_norm(hidden_too, delta, weight), plain.add_norm(hidden, delta, weight))
    torch.testing.assert_close(hidden_too, hidden)
    gate_up = torch.randn(num_rows, 48)
    gate_up[0, :4] = torch.tensor([-200.0, -88.0, 88.0, 200.0])  # beyond what an exponential can be
    torch.testing.assert_close(fused.gate(gate_up), plain.gate(gate_up))

    qkv, angle = torch.randn(num_rows, 8, 10), torch.randn(num_rows, 5).repeat(1, 2)
    slots = torch.randperm(50)[:num_rows]
    placed = []
    for ops in (fused, plain):
        own, cache = qkv.clone(), torch.zeros(2, 2, 50, 10)
        if architecture.has_qk_norm:
            ops.norm_heads(own, weight[:10], weight[10:20])
        queries = ops.place(own, (angle.cos(), angle.sin()), slots, *cache)
        placed.append((queries, cache))
        assert cache[:, :, slots].abs().min() > 0
        assert int((cache != 0).sum()) == 2 * 2 * num_rows * 10
    torch.testing.assert_close(*placed)


@pytest.mark.parametrize("num_rows", ROWS)
def test_packed_linear_equals_plain(num_rows: int) -> None:
    """Guards both forms that a product takes, for few rows and for many."""
    weight, bias, x = torch.randn(48, 40), torch.randn(48), torch.randn(num_rows, 40)
    torch.testing.assert_close(PackedLinear(weight, bias)(x), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("num_outputs", [48, int8.MANY_OUTPUTS])
def test_int8_is_the_integer_product(num_outputs: int) -> None:
    """Guards the meaning of int8: the product of int8 weights with activations of 15 bits, in either library, within
    the 24 bits that a float32 keeps of its two digits' sums."""
    torch.manual_seed(1)
    weight, x = torch.randn(num_outputs, 40), torch.randn(9, 40)
    weight[3], x[5] = 0.0, 0.0
    scale = (weight.abs().amax(1) / int8.WEIGHT_LEVELS).where(weight.abs().amax(1) > 0, torch.tensor(1.0))
    rounded_weight = (weight / scale[:, None]).round().double() * scale[:, None].double()
    step = x.abs().amax(1, keepdim=True).double() / (2 * int8.activation_levels() ** 2)
    rounded_x = torch.where(step > 0, (x / step).round() * step, 0.0)
    linear = Int8Linear(weight, None)
    for num_rows in (1, 2, 3, 9):
        expected = rounded_x[:num_rows] @ rounded_weight.T
        torch.testing.assert_close(linear(x[:num_rows]).double(), expected, rtol=1e-4, atol=2e-3)
    whole = linear(x)
    assert all(torch.equal(linear(x[i : i + 1])[0], whole[i]) for i in range(9))


@pytest.mark.parametrize("num_outputs", [48, int8.MANY_OUTPUTS])
def test_int8_rows_do_not_depend_on_neighbours(num_outputs: int) -> None:
    """Guards batch invariance bit for bit: a row's result with neighbours a thousand times larger, in any number."""
    torch.manual_seed(2)
    linear = Int8Linear(torch.randn(num_outputs, 40), torch.randn(num_outputs))
    x = torch.randn(40, 40)
    alone = linear(x[:1])
    x[1:] *= 1000
    for num_rows in (2, 3, 8, 17, 40):
        assert torch.equal(linear(x[:num_rows])[:1], alone)


@pytest.fixture(scope="module")
def int8_engine(model_dir: Path) -> Engine:
    return Engine(EngineConfig(model=str(model_dir), quantization="int8", prefill_chunk=16))


def test_int8_requests_do_not_depend_on_neighbours(int8_engine: Engine) -> None:
    """Guards one request's answer against who shares its batch: logits are equal to the last bit."""

    def logits(num_neighbours: int) -> torch.Tensor:
        neighbours = [int8_engine.open(prompt(i, 3 + i), sampling=Sampling()) for i in range(num_neighbours)]
        while any(branch.num_pending > 1 for branch in neighbours):
            int8_engine.step()
        branch = int8_engine.open(prompt(99, 12), keep_logits=True)
        parts = []
        for token in (None, 3, 1, 4):
            if token is not None:
                int8_engine.feed(branch, [token])
            parts += [output.logits for output in int8_engine.step() if output.branch is branch]
        for other in (branch, *neighbours):
            int8_engine.free(other)
        return torch.cat([part for part in parts if part is not None])

    alone = logits(0)
    assert alone.shape[0] == 15
    for num_neighbours in (1, 2, 7):
        assert torch.equal(logits(num_neighbours), alone)


def test_int8_stays_close(int8_engine: Engine, reference: PreTrainedModel) -> None:
    """Guards against int8 that is not the model any more: logits point where float32's do."""
    ids = prompt(11, 14)
    branch = int8_engine.open(ids, keep_logits=True)
    (output,) = int8_engine.step()
    int8_engine.free(branch)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0]
    assert output.logits is not None
    assert torch.nn.functional.cosine_similarity(output.logits, expected).min() > 0.98
    assert decode(int8_engine, [int8_engine.open(ids, sampling=Sampling())], 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "int3"}, "quantization is 'int3'; allowed: None, int8"),
        ({"quantization": "int8", "dtype": "bfloat16"}, "runs with device 'cpu' and dtype 'float32'"),
        ({"quantization": "int8", "device": "cuda"}, "runs with device 'cpu'"),
    ],
)
def test_quantizations_that_cannot_run(settings: dict[str, str], message: str) -> None:
    """Guards against a quantisation that is silently left out."""
    with pytest.raises(InputError, match=message):
        EngineConfig(**settings)  # type: ignore[arg-type]
