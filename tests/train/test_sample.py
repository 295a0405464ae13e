"""Sampling: every sample once and reproducible, whatever is interrupted, and full batches."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.cli import main
from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.messages import Request
from pasta_ray.errors import InputError, ReplicaError
from pasta_ray.lang import TagMap, parse
from pasta_ray.train.crew import RayCrew
from pasta_ray.train.sample import (
    LocalCrew,
    Plan,
    Prompt,
    SampleFile,
    Sampler,
    encode_prompts,
    read_prompts,
    sample_all,
)
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer
from tests.fakes import FakeDecoder, FakeTokenizer, ask

Run = Callable[..., dict[str, Any]]


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that writes tags."""
    folder = save_tokenizer(save_model(tmp_path_factory.mktemp("model"), vocab_size=306))
    TagMap.after(300).save(folder)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `train sample` on two prompts; gives its counts."""
    prompts = write(
        tmp_path / "prompts.jsonl",
        {"id": "p", "instruction": "hello there", "source": "s", "license": "MIT", "output": "not carried"},
        {"id": "q#1", "instruction": "user", "input": "general", "system": "system"},
    )

    def run(*args: str) -> dict[str, Any]:
        options = ["--prompts", str(prompts), "--model", str(model), "--adapter", "none"]
        try:
            main(["train", "sample", *options, "--max-tokens", "24", "--threads", "1", "--json", *args])
        except SystemExit as exit_:
            if exit_.code:
                raise
        counts: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return counts

    return run


def test_a_file_of_prompts_gives_samples(run: Run, tmp_path: Path) -> None:
    """Guards the samples' format, which judges and stage 2 read, and that what is written is what was decoded."""
    out = tmp_path / "out.jsonl"
    counts = run("--out", str(out), "--num", "3")
    samples = {sample["id"]: sample for sample in read(out)}
    assert sorted(samples) == ["p#0", "p#1", "p#2", "q#1#0", "q#1#1", "q#1#2"]
    first = samples["p#0"]
    assert " ".join(first) == (
        "id prompt_id sample instruction source license document text finish_reason completion_tokens annotation_tokens"
        " critical_path sequential_tokens speedup temperature top_p model adapter seed"
    )
    assert (first["prompt_id"], first["sample"], first["source"], first["license"]) == ("p", 0, "s", "MIT")
    assert (samples["q#1#2"]["prompt_id"], samples["q#1#2"]["sample"], samples["q#1#2"]["input"]) == (
        "q#1",
        2,
        "general",
    )
    for sample in samples.values():
        assert parse(sample["document"]).text() == sample["text"]
        assert sample["finish_reason"] in ("stop", "length")
        assert sample["speedup"] == pytest.approx(sample["sequential_tokens"] / sample["critical_path"])
    assert len({sample["seed"] for sample in samples.values()}) == 6
    assert len({samples[f"p#{k}"]["text"] for k in range(3)}) == 3
    assert counts["samples"] == 6
    assert counts["tokens"] == sum(s["completion_tokens"] + s["annotation_tokens"] for s in samples.values())
    assert counts["tokens_per_s"] > 0


def test_what_was_cut_off_goes_on_and_gives_the_same_samples(run: Run, tmp_path: Path) -> None:
    """Guards resuming: no sample twice, none lost, and each as it would have been without the stop, whoever was beside
    it in the batch."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run("--out", str(whole), "--num", "4")
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:3]) + lines[3][: len(lines[3]) // 2])
    counts = run("--out", str(cut), "--num", "4", "--batch", "2")
    assert (counts["samples_before"], counts["samples"]) == (3, 5)
    assert sorted(read(cut), key=lambda s: str(s["id"])) == sorted(read(whole), key=lambda s: str(s["id"]))
    before = cut.read_bytes()
    assert run("--out", str(cut), "--num", "4")["samples"] == 0
    assert cut.read_bytes() == before


def test_the_first_sample_may_be_the_greedy_one(run: Run, tmp_path: Path) -> None:
    """Guards `--greedy`: sample 0 is what greedy decoding gives, the others are as without it, and it resumes."""
    mixed, greedy, drawn = (tmp_path / f"{name}.jsonl" for name in ("mixed", "greedy", "drawn"))
    run("--out", str(mixed), "--num", "3", "--greedy")
    run("--out", str(greedy), "--num", "1", "--temperature", "0")
    run("--out", str(drawn), "--num", "3")
    first = {s["id"]: s for s in read(mixed) if s["sample"] == 0}
    assert first == {s["id"]: s for s in read(greedy)}
    later = {s["id"]: s for s in read(mixed) if s["sample"]}
    assert later == {s["id"]: s for s in read(drawn) if s["sample"]}
    assert run("--out", str(mixed), "--num", "3", "--greedy")["samples"] == 0


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [("--temperature", "0.5", "temperature"), ("--seed", "1", "seed"), ("--top-p", "0.5", "top_p")],
)
def test_samples_of_two_plans_are_not_mixed(run: Run, tmp_path: Path, option: str, value: str, field: str) -> None:
    """Guards a file whose samples come from different distributions without anyone noticing."""
    out = tmp_path / "out.jsonl"
    run("--out", str(out), "--num", "1")
    with pytest.raises(SystemExit) as exit_:
        run("--out", str(out), "--num", "2", option, value)
    assert exit_.value.code == 2
    assert len(read(out)) == 2, f"the file with another {field} stays as it is"


def test_every_worker_has_its_batch_full() -> None:
    """Guards against a batch that is refilled only when all of it is done, or never filled."""
    most = []

    class Watched(FakeDecoder):
        def step(self) -> list[Any]:
            most.append(self.num_requests)
            return super().step()

    requests = [ask("word " * length, str(length)) for length in (1, 9, 2, 8, 3, 7)]
    crew = LocalCrew(Sampler(Watched))
    outcomes = list(sample_all(crew, iter(requests), batch=3))
    assert sorted(outcome.id for outcome in outcomes) == sorted(request.id for request in requests)
    assert max(most) == 3
    assert most[: 3 + 1] == [3] * 4, "one that ends makes room for the next at once"


def test_a_refused_prompt_stops_no_other(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards a long run against one prompt; it is named in the end."""
    outcomes = sample_all(LocalCrew(Sampler(FakeDecoder)), iter([ask("refuse", "bad"), ask("fine", "good")]), batch=1)
    assert [(o.id, o.refusal, o.report is not None) for o in outcomes] == [
        ("bad", "the prompt is refused", False),
        ("good", "", True),
    ]
    with pytest.raises(SystemExit):
        run("--out", str(tmp_path / "out.jsonl"), "--num", "1", "--max-tokens", "5000")
    error = capsys.readouterr().err
    assert "sample 'p#0': the prompt's" in error
    assert "and 1 more" in error


def test_the_method_fits_what_the_model_writes(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a run in which every request is refused; unless told, the method is that of the model's tags."""
    with pytest.raises(SystemExit) as exit_:
        run("--out", str(tmp_path / "out.jsonl"), "--method", "apar")
    assert exit_.value.code == 2
    assert "method is 'apar'; allowed with this model: " in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    run("--out", str(tmp_path / "out.jsonl"), "--num", "10")
    assert any("<promise" in sample["document"] for sample in read(tmp_path / "out.jsonl"))


def die_once(marker: str) -> FakeDecoder:
    """A decoder whose process dies in its first life, in the second step."""

    class Mortal(FakeDecoder):
        def step(self) -> list[Any]:
            news = super().step()
            if not os.path.exists(marker) and self.num_requests > 1:  # noqa: PTH110
                os.close(os.open(marker, os.O_CREAT))
                os._exit(1)
            return news

    return Mortal()


@pytest.mark.usefixtures("ray_cluster")
def test_workers_share_the_work_and_one_that_dies_loses_nothing(tmp_path: Path) -> None:
    """Guards a long run against one lost process: its requests are sampled again, each once."""
    requests = [ask(f"sample {i} fork word word", str(i)) for i in range(12)]
    crew = RayCrew(partial(die_once, str(tmp_path / "died")), 2, num_cpus=0)
    try:
        outcomes = list(sample_all(crew, iter(requests), batch=2))
    finally:
        crew.close()
    assert sorted(outcome.id for outcome in outcomes) == sorted(request.id for request in requests)
    assert (tmp_path / "died").exists()
    alone = {o.id: o.report for o in sample_all(LocalCrew(Sampler(FakeDecoder)), iter(requests), batch=2)}
    for outcome in outcomes:
        assert outcome.report
        other = alone[outcome.id]
        assert other
        assert outcome.report.text == other.text


@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_always_die_end_the_run() -> None:
    """Guards against a request that kills every process it meets, for ever."""
    crew = RayCrew(FakeDecoder, 1, num_cpus=0, max_lost=0)
    with pytest.raises(ReplicaError, match="sampling workers died 1 times"):
        list(sample_all(crew, iter([ask("die")]), batch=1))
    with pytest.raises(InputError, match=r"3 workers need 300 CPUs; this Ray has 4"):
        RayCrew(FakeDecoder, 3, num_cpus=100)


def test_seeds_depend_on_the_prompt_and_number_alone() -> None:
    """Guards against equal samples, and against others after a resume or with more samples a prompt."""
    few, many = Plan(num=2, seed=7), Plan(num=20, seed=7)
    assert few.sampling("p", 1) == many.sampling("p", 1)
    seeds = {plan.sampling(p, k).seed for plan in (Plan(seed=7), Plan(seed=8)) for p in "pq" for k in range(10)}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_bad_input_is_named(tmp_path: Path) -> None:
    """Guards against errors that do not say which line, field or value."""
    with pytest.raises(InputError, match="num is 0"):
        Plan(num=0)
    with pytest.raises(InputError, match="temperature is 3"):
        Plan(temperature=3)
    with pytest.raises(InputError, match="line 2: id 'a' was used before"):
        read_prompts(write(tmp_path / "p.jsonl", {"id": "a", "instruction": "x"}, {"id": "a", "instruction": "y"}))
    with pytest.raises(InputError, match="line 1: instruction"):
        read_prompts(write(tmp_path / "p.jsonl", {"id": "a"}))

    def refuse(_: Sequence[dict[str, str]]) -> list[int]:
        raise InputError("no chat template")

    with pytest.raises(InputError, match="prompt 'a': no chat template"):
        encode_prompts([Prompt(id="a", instruction="x")], refuse)


def test_requests_are_those_that_are_not_done(tmp_path: Path) -> None:
    """Guards the order too: a prompt's samples one after the other, so that its prefix is found."""
    plan, config = Plan(num=2), EngineConfig()
    prompts = [Prompt(id=name, instruction=name) for name in "ab"]
    done = SampleFile(tmp_path / "none.jsonl", plan, config)
    encoded = encode_prompts(prompts, FakeTokenizer().encode_chat)
    requests: list[Request] = list(done.requests(encoded))
    assert [request.id for request in requests] == ["a#0", "a#1", "b#0", "b#1"]
    assert [request.sampling for request in requests[:2]] == [plan.sampling("a", 0), plan.sampling("a", 1)]
