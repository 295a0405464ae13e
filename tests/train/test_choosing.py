"""Which documents the jobs choose to teach the grammar from: the best samples, and the hardest documents."""

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.lang import TagMap
from pasta_ray.train.config import SftConfig
from pasta_ray.train.data import Batch, Encoder, Record
from pasta_ray.train.grammar import GrammarLoss
from pasta_ray.train.policy import load_policy
from pasta_ray.train.saving import save_adapter
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer
from tests.train.test_preferences import sample

JOBS = Path(__file__).parents[2] / "jobs"
TAGS = TagMap.after(300)
PLAIN = "Hi there, and so on."
PROMISE = 'Hi <promise topic="a b" tokens="10"/><async> c</async> d <sync/>e'


def job(name: str) -> dict[str, Any]:
    return runpy.run_path(str(JOBS / f"{name}.py"))


def run(name: str, monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
    job(name)["main"]()


def write(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")
    return path


def test_the_best_samples_of_each_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards λ in the ranking, a document that is there twice, and answers that were cut off or that nobody judged."""
    samples = [
        sample("p", 0, 1.0, 0.9),  # 2.8
        sample("p", 1, 2.0, 0.5),  # 3.0
        sample("p", 2, 2.0, 0.2),  # 2.4
        sample("p", 3, 1.9, 0.5, document="answer 1"),
        sample("p", 4, 9.0, 0.9, finish_reason="length"),
        sample("p", 5, 9.0, None),
        sample("q", 0, 1.0, 0.1),
    ]
    out = tmp_path / "documents.jsonl"
    run(
        *("best_samples", monkeypatch, write(tmp_path / "scored.jsonl", samples)),
        *("--lambda", 2, "--num", 2, "--out", out),
    )
    chosen = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in chosen] == ["p#1", "p#0", "q#0"]
    assert chosen[0] == {"id": "p#1", "instruction": "Say", "document": "answer 1"}
    assert json.loads(capsys.readouterr().out) == {"prompts": 2, "documents": 3}


def test_hardness_is_the_most_that_the_mask_takes_away(tmp_path: Path) -> None:
    """Guards a mean, which a long document would hide its one hard token in. By hand: all tokens are equally likely but
    for one label of a body, where e times as much lies on a promise, which a body must not have."""
    tokenizer = Tokenizer.load(save_tokenizer(tmp_path), TAGS)
    encoder = Encoder(tokenizer, TAGS)
    record = Record(id="r", instruction="i", document='<promise topic="a" tokens="10"/><async> c</async>')
    layout = encoder.encode(record).layout
    labels = [id_ for id_, source in zip(layout.ids, layout.label_source, strict=True) if source is not None]

    def certain(batch: Batch) -> torch.Tensor:
        """Each label certain, but for the body's end."""
        logits = torch.full((len(batch.labels), 306), -100.0)
        logits[torch.arange(len(labels)), batch.labels] = 0.0
        logits[labels.index(TAGS.async_end), TAGS.promise] = 1.0
        return logits

    masked_away = torch.e / (1 + torch.e)
    assert job("hard_documents")["hardness"](record, certain, encoder, GrammarLoss(tokenizer)) == pytest.approx(
        masked_away, abs=1e-5
    )


def test_the_hardest_documents_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards easy documents that fill the file. A random model finds all tokens alike: after `tokens="` ten are left of
    three hundred, in plain text all but a few."""
    model = save_tokenizer(save_model(tmp_path / "model", vocab_size=300))
    config = SftConfig(name="x", documents=[tmp_path], model=str(model), lora_rank=2, lora_alpha=4)
    encoder = Encoder(Tokenizer.load(model, TAGS), TAGS)
    save_adapter(load_policy(config, encoder), tmp_path / "adapter")
    records = [Record(id=name, instruction="i", document=text) for name, text in (("a", PLAIN), ("b", PROMISE))]
    out = tmp_path / "hard.jsonl"
    paths = [write(tmp_path / "samples.jsonl", records), "--adapter", tmp_path / "adapter", "--model", model]
    for least, chosen in ((0.5, ["b"]), (0.0, ["b", "a"])):
        run("hard_documents", monkeypatch, *paths, "--least", least, "--out", out)
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [line["id"] for line in lines] == chosen
        assert json.loads(capsys.readouterr().out) == {"documents": 2, "hard": len(chosen), "chosen": len(chosen)}
    run("hard_documents", monkeypatch, *paths, "--least", 0, "--num", 1, "--out", out)
    assert [Record.model_validate_json(line).id for line in out.read_text(encoding="utf-8").splitlines()] == ["b"]
