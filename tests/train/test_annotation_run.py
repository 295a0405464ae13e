"""A run of the annotator from files to files: it goes on where it stopped, and says where things went."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pasta_ray.cli import main
from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Text, parse
from pasta_ray.train.annotate import Counts
from pasta_ray.train.annotation_run import AnnotationRun
from pasta_ray.train.annotators.base import Annotation
from pasta_ray.train.annotators.syntax import SyntaxConfig
from pasta_ray.train.endpoint import EndpointError
from pasta_ray.train.pairs import Pair
from tests.engine.test_tokenizer import save_tokenizer

ANSWER = (
    "- Apples keep for months in a cool cellar, where they should lie apart from each other, number {0}\n"
    "- Bread is best on the day it was baked, and after that it may be toasted or put into soups, number {0}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Ten pairs; every third is a benchmark's."""
    path = tmp_path / "answers.jsonl"
    pairs = [
        {"id": f"p{i}", "instruction": "Do it", "output": ANSWER.format(i), "benchmark": not i % 3} for i in range(10)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(answers: Path, model: str, annotator: Any = SyntaxConfig(batch_size=2), **fields: Any) -> Counts:  # noqa: B008
    out = answers.with_name("out.jsonl")
    return AnnotationRun([answers], out, annotator, model, **fields).run()


@dataclass(frozen=True)
class Stumbling:
    """An annotator that gives answers back as they are, and gives up at pair ``p5``."""

    batch_size: int = 2
    name: ClassVar[str] = "syntax"

    def load(self, *_: object) -> "Stumbling":
        return self

    def annotate(self, pairs: Sequence[Pair]) -> list[Annotation]:
        if any(pair.id == "p5" for pair in pairs):
            raise EndpointError("the endpoint cannot be reached", "nobody there")
        return [Annotation(Document((Text(pair.output),))) for pair in pairs]


def test_a_run_goes_on_where_it_stopped(answers: Path, model: str) -> None:
    """Guards against pairs lost or done twice by a crash, be it in the middle of a line or of a character."""
    out, dropped = answers.with_name("out.jsonl"), answers.with_name("out.dropped.jsonl")
    whole = run(answers, model)
    assert (whole.num_documents, whole.num_promises, whole.dropped) == (6, 12, {"benchmark prompt": 4})
    expected = lines(out), lines(dropped)
    assert [line["id"] for line in expected[0]] == ["p1", "p2", "p4", "p5", "p7", "p8"]
    assert [line["id"] for line in expected[1]] == ["p0", "p3", "p6", "p9"]
    out.unlink(), dropped.unlink()

    with pytest.raises(EndpointError):
        run(answers, model, Stumbling())
    assert [line["id"] for line in lines(out) + lines(dropped)] == ["p1", "p2", "p0", "p3"], "what was done is kept"
    out.unlink(), dropped.unlink()

    out.write_bytes(
        b"".join(json.dumps(line).encode() + b"\n" for line in expected[0][:3]) + '{"id": "pä'.encode()[:-1]
    )
    assert run(answers, model) == whole
    assert lines(out) == expected[0]
    assert run(answers, model) == whole, "nothing left to do"
    assert (lines(out), lines(dropped)) == expected


def test_progress_counts_what_was_done_before(answers: Path, model: str) -> None:
    """Guards the bar of a run that goes on."""
    seen: list[tuple[int, int]] = []
    this = AnnotationRun([answers], answers.with_name("out.jsonl"), SyntaxConfig(batch_size=4), model)
    this.run(lambda done, total: seen.append((done, total)))
    assert seen == [(0, 10), (4, 10), (8, 10), (10, 10)]
    seen.clear()
    this.run(lambda done, total: seen.append((done, total)))
    assert seen == [(10, 10)]


def test_files_of_others_stay_as_they_are(answers: Path, model: str) -> None:
    """Guards somebody's data, named by mistake as --out, and documents of two annotators in one file."""
    out = answers.with_name("out.jsonl")
    with pytest.raises(InputError, match="would overwrite"):
        AnnotationRun([out], out, SyntaxConfig(), model).run()
    for content, message in (
        ("my notes", "line 1: not written by an earlier run"),
        ('{"id": "p1", "document": "x"}\n', "by 'another program', not by 'syntax'"),
        ('{"id": "p1", "document": "x", "speedup": 1, "annotator": "llm"}\n', "by 'llm', not by 'syntax'"),
        ('{"id": "q", "document": "x", "speedup": 1, "annotator": "syntax"}\n', "id 'q' is not in the answers"),
        ('{"id": "p", "reason": "x", "annotator": "syntax"}\n' * 2, "twice"),
    ):
        out.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            run(answers, model)
        assert out.read_text(encoding="utf-8") == content
    with pytest.raises(InputError, match="No such file"):
        AnnotationRun([answers], answers.parent / "no" / "out.jsonl", SyntaxConfig(), model).run()


def test_the_command(answers: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the command's surface: files, counts, and errors of one line."""
    out = answers.with_name("out.jsonl")
    main_ = ["annotate", str(answers), "--out", str(out), "--model", model]
    with pytest.raises(SystemExit) as done:
        main([*main_, "--json", "--level", "list"])
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out) == {
        "num_documents": 6,
        "num_with_promises": 6,
        "num_promises": 12,
        "speedup": pytest.approx(1.6, abs=0.3),
        "dropped": {"benchmark prompt": 4},
    }
    assert all(len(parse(line["document"]).promises) == 2 for line in lines(out))
    with pytest.raises(SystemExit) as done:
        main(main_)
    assert "4 dropped: benchmark prompt" in capsys.readouterr().out
    for more, message in (
        (["--level", "sentence"], "levels are sentence; `syntax` allows: section, list, paragraph"),
        (["--annotator", "llm"], "needs --endpoint and --endpoint-model"),
        (["--annotator", "independence"], "was written by 'syntax'"),
        (["--annotator", "independence", "--device", "tpu"], "device is 'tpu'; allowed: cpu, cuda"),
        (["--num-workers", "-1"], "num_workers is -1; allowed: 0"),
    ):
        with pytest.raises(SystemExit) as done:
            main([*main_, *more])
        assert done.value.code == 2
        assert message in capsys.readouterr().err
