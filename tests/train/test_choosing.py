"""Which documents the jobs choose to teach the grammar from: the best samples, and full topics."""

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.train.data import Record
from tests.train.test_preferences import sample

JOBS = Path(__file__).parents[2] / "jobs"


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


def test_documents_with_a_full_topic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards what has no full topic, a document that is there twice, a prompt's share, and what was cut off."""

    def with_topic(topic: str) -> str:
        return f'Hi <promise topic="{topic}" tokens="10"/><async> c</async>'

    full, other = with_topic("a b c"), with_topic("d e f")
    samples = [
        sample("p", 0, 1.0, 0.9, document=with_topic("a b")),
        sample("p", 1, 1.0, 0.9, document=full),
        sample("p", 2, 1.0, 0.9, document=full),
        sample("p", 3, 1.0, 0.9, document=other),
        sample("p", 4, 1.0, 0.9, document=with_topic("g h i")),
        sample("q", 0, 1.0, 0.9, document=full, finish_reason="length"),
    ]
    annotated = [Record(id="r", instruction="Say", document=full), Record(id="s", instruction="Say", document="plain")]
    files = write(tmp_path / "samples.jsonl", samples), write(tmp_path / "annotated.jsonl", annotated)
    out = tmp_path / "documents.jsonl"
    run("full_topics", monkeypatch, *files, "--num", 2, "--out", out)
    chosen = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in chosen] == ["p#1", "p#3", "r"]
    assert chosen[2] == {"id": "r", "instruction": "Say", "document": full}
    assert json.loads(capsys.readouterr().out) == {"documents": 8, "chosen": 3}
