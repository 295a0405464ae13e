"""`eval run` over a small random model: from a YAML file to a report, whatever is interrupted."""

import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import yaml

from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.engine.messages import Events, Request
from pasta_ray.eval.answers import read_answers
from pasta_ray.eval.diff import read_report
from pasta_ray.lang import TagMap
from pasta_ray.serve.config import ServeConfig, ServedModel
from pasta_ray.serve.http import create_app
from pasta_ray.serve.service import Service
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer
from tests.eval.reports import run
from tests.eval.test_run import MACHINE
from tests.eval.test_served import hosted
from tests.fakes import FakeDecoder, FakeTokenizer, fake_models
from tests.serve.test_http import LocalBackend
from tests.train.endpoints import serving


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tokenizer(save_model(tmp_path_factory.mktemp("model"), vocab_size=306))
    TagMap.after(300).save(folder)
    return folder


def test_an_evaluation_from_its_file_to_its_report(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards the whole: a run that is cut off and goes on gives the report of an undisturbed one, timings aside."""
    monkeypatch.setattr("pasta_ray.eval.bench.machine.describe_machine", lambda *_: MACHINE)
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": f"p{n}", "instruction": f"hello {n}"} for n in range(3)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with serving(lambda _: "A") as stub:
        plan = {
            "prompts": str(prompts),
            "systems": [
                {"name": "sequential", "method": "sequential", "model": str(model)},
                {"name": "speculative", "method": "speculative", "model": str(model)},
                {"name": "pasta", "method": "pasta", "model": str(model)},
            ],
            "max_tokens": 8,
            "load": {"concurrency": [1, 2], "systems": ["sequential", "pasta"]},
            "quality": {"judge": "llm", "base_url": stub.base_url, "judge_model": "m", "perplexity": True},
        }
        config = tmp_path / "eval.yaml"
        config.write_text(yaml.safe_dump(plan), encoding="utf-8")
        whole, cut = tmp_path / "whole", tmp_path / "cut"
        assert run("--config", config, "--out", whole, "--limit", 2, "--json") == 0, "run is the default"
        capsys.readouterr()
        answers = (whole / "answers.jsonl").read_bytes()
        assert answers.count(b"\n") == 6
        cut.mkdir()
        for name in ("plan.json", "prompts.jsonl", "machine.jsonl"):
            (cut / name).write_bytes((whole / name).read_bytes())
        (cut / "answers.jsonl").write_bytes(answers[: len(answers) // 2])
        assert run("run", "--config", config, "--out", cut, "--limit", 2, "--json") == 0
        assert run("run", "--config", config, "--out", cut, "--set", "limit=2", "--set", "max_tokens=9") == 2
    assert "max_tokens 8, and now it is 9" in capsys.readouterr().err
    one, other = read_report(whole), read_report(cut)
    texts = [{a.id: a.report and a.report.document for a in read_answers(f / "answers.jsonl")} for f in (whole, cut)]
    assert texts[0] == texts[1]
    assert len(other.sittings) == 2
    for name, system in one.systems.items():
        again = other.systems[name]
        assert (system.counts, system.quality) == (again.counts, again.quality)
        assert system.speed.all.anatomy == again.speed.all.anatomy
        assert (system.same_text, system.perplexity) == (again.same_text, again.perplexity)
        assert system.speed.all.step_speedup == again.speed.all.step_speedup
    assert [(point.system, point.concurrency, point.num_answers) for point in one.load] == [
        *(("sequential", 1, 2), ("pasta", 1, 2), ("pasta", 2, 2), ("sequential", 2, 2))
    ]
    assert one.complete
    assert one.systems["speculative"].same_text["sequential"] == 1.0
    perplexity = one.systems["pasta"].perplexity
    assert perplexity is not None
    assert perplexity.all is not None
    assert perplexity.all > 1
    assert one.judge is not None
    assert one.judge.name == "llm:m"


class Crowded(LocalBackend):
    """Counts who is in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = DecodeLoop(lambda replica: FakeDecoder(replica, step_s=0.01))
        self.now = self.most = 0

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            async for message in super().decode(request):
                yield message
        finally:
            self.now -= 1


def test_the_load_of_a_service_is_measured_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards jobs/configs/load.yaml: the two names of one service, requests that are really at once, and a measurement
    that an interruption does not repeat."""
    monkeypatch.setattr("pasta_ray.eval.bench.machine.describe_machine", lambda *_: MACHINE)
    plan = yaml.safe_load((Path(__file__).parents[2] / "jobs/configs/load.yaml").read_text(encoding="utf-8"))
    assert plan["load"]["num_prompts"] >= 32
    names = [system["model"] for system in plan["systems"]]
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "load"
    lines = [{"id": f"p{n}", "instruction": f"hello {n} fork b"} for n in range(40)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    settings = ServeConfig(models={name: ServedModel(adapter=name) for name in names})
    backend = Crowded()
    with hosted(create_app(Service(settings, fake_models(settings), backend, FakeTokenizer()))) as url:
        systems = [system | {"base_url": url} for system in plan["systems"]]
        config = tmp_path / "load.yaml"
        config.write_text(yaml.safe_dump(plan | {"systems": systems}), encoding="utf-8")
        given = ("--config", config, "--set", f"prompts={prompts}", "--out", out)
        few = ("--set", "load={concurrency: [1, 8], num_prompts: 32}")
        assert run("run", *given, *few) == 0
        assert backend.most == 8
        assert len(backend.requests) == 2 * (1 + 32 + 8 + 32), "the warm-up's are answered beside them"
        assert {request.method for request in backend.requests} == {"sequential", "pasta"}
        points = (out / "load.jsonl").read_bytes().splitlines(keepends=True)
        (out / "load.jsonl").write_bytes(b"".join(points[:3]) + points[3][:20])
        assert run("report", out) == 0
        assert not read_report(out).complete
        backend.requests.clear()
        assert run("run", *given, *few) == 0
    assert len(backend.requests) == 8 + 32
    report = read_report(out)
    assert report.complete
    assert [(point.system, point.concurrency, point.num_answers) for point in report.load] == [
        *(("sequential", 1, 32), ("pasta", 1, 32), ("pasta", 8, 32), ("sequential", 8, 32))
    ]
    text = (out / "report.md").read_text(encoding="utf-8")
    assert f"under load alone, greedy, at most 256 tokens, asked at {url}" in text
    assert "## Under load" in text
    assert "## Speed" not in text


def test_mistakes_are_named_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("run", "--prompts", tmp_path / "none.jsonl", "--out", out) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err
    assert run("--prompts", tmp_path / "none.jsonl", "--methods", "sequential,magic", "--out", out) == 2
    assert "'magic' is unknown; allowed: sequential" in capsys.readouterr().err
    assert run("run", "--out", out, "--set", "wrong=1") == 2
    assert "prompts: Field required" in capsys.readouterr().err


def test_what_the_pictures_need_is_missed_before_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards hours of answers whose report then fails at an import."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("run", "--prompts", tmp_path / "none.jsonl", "--out", tmp_path / "out") == 2
    assert "pip install 'pasta-ray[eval]'" in capsys.readouterr().err
