"""The scripts beside the package, on a random model: their peers here are a fake one and a missing one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.eval.bench.workload import random_prompts
from tests.engine.conftest import VOCAB, save_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAKE_LLAMA = """
import itertools
__version__ = "fake"
print("a greeting on standard output")
class Llama:
    def __init__(self, model, **settings): pass
    def reset(self): pass
    def generate(self, ids, **settings): return itertools.repeat(len(ids))
"""


def test_peers_are_compared_and_those_absent_are_named(tmp_path: Path) -> None:
    """Guards a peer that is dropped without a word, and one whose own printing breaks the exchange."""
    (tmp_path / "llama_cpp.py").write_text(FAKE_LLAMA)
    (tmp_path / "vllm.py").write_text("raise ImportError('no such luck')")
    (tmp_path / "model.gguf").touch()
    out = tmp_path / "out.json"
    sizes = ["--context", "20", "--tokens", "3", "--reps", "1", "--threads", "1"]
    places = ["--model", str(save_model(tmp_path / "model")), "--gguf", str(tmp_path / "model.gguf"), "--out", str(out)]
    subprocess.run(
        [sys.executable, str(BENCHMARKS / "peers.py"), *sizes, *places],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{BENCHMARKS.parent}", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    result = json.loads(out.read_text(encoding="utf-8"))
    peers = {name.rsplit(":")[0] for name in result["figures"]}
    assert peers == {"ours, float32", "ours, int8", "transformers, float32", "llama, fake"}
    assert result["settings"]["absent"] == {"vllm": "not installed: no such luck"}
    for ratio in result["ratios"].values():
        quotient = (result["figures"][ratio[side]]["median"] for side in ("numerator", "denominator"))
        assert ratio["value"] == pytest.approx(next(quotient) / next(quotient))


@pytest.fixture
def agreement() -> ModuleType:
    spec = importlib.util.spec_from_file_location("agreement", BENCHMARKS / "agreement.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class WithoutStops:
    """Stands for the tokenizer that a random model does not have."""

    stop_ids = ()


def test_an_engine_agrees_with_itself_and_less_with_coarser_numerics(agreement: ModuleType, tmp_path: Path) -> None:
    """Guards teacher-forced logits that are off by one, which agree with nothing."""
    model = str(save_model(tmp_path / "model"))
    exact = Engine(EngineConfig(model=model, prefill_chunk=7))
    coarse = Engine(EngineConfig(model=model, dtype="bfloat16"))
    for engine in (exact, coarse):
        engine.__dict__["tokenizer"] = WithoutStops()
    prompts = random_prompts(3, 20, VOCAB)
    same = agreement.agreement(exact, exact, prompts, 9)
    assert (same["top1_agreement"], same["answers_equal_share"], same["tokens"]) == (1.0, 1.0, 27)
    assert same["kl_divergence_mean_nats"] == pytest.approx(0.0, abs=1e-6)
    assert same["perplexity_exact"] == same["perplexity_other"]
    other = agreement.agreement(exact, coarse, prompts, 9)
    assert 0.0 < other["kl_divergence_mean_nats"] < 0.1
    assert other["perplexity_exact"] == same["perplexity_exact"]
    assert exact.num_slots == coarse.num_slots == 0
