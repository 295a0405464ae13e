"""The whole pipeline with real actors and a fake decoder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.batch.rows import Defaults
from pasta_ray.batch.run import Pool, Progress, run_batch
from pasta_ray.batch.worker import Job
from pasta_ray.errors import InputError, ReplicaError
from tests.fakes import FakeTokenizer, MakeFakeDecoder

pytestmark = pytest.mark.usefixtures("ray_cluster")
JOB = Job(MakeFakeDecoder(), FakeTokenizer, Defaults(method="pasta", max_tokens=100))
POOL = Pool(num_workers=2, batch=4, cpus_per_worker=0)


def write(path: Path, words: list[str]) -> Path:
    rows = [{"id": f"p{number}", "instruction": each} for number, each in enumerate(words)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> dict[int, dict[str, Any]]:
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    by_row = {answer["row"]: answer for answer in answers}
    assert len(by_row) == len(answers), "a row has two answers"
    return by_row


def run(prompts: Path, out: Path, job: Job = JOB, pool: Pool = POOL) -> Progress:
    *_, last = run_batch(prompts, out, job, pool)
    return last


def test_every_row_gets_one_answer_and_faults_stay_with_their_rows(tmp_path: Path) -> None:
    """Guards against a bad row that ends the job, and against rows that are lost with it; then against a second run
    that answers them again."""
    words = [f"fork then {number}" for number in range(12)]
    prompts, out = write(tmp_path / "in.jsonl", [*words, "refuse"]), tmp_path / "out.jsonl"
    with prompts.open("a") as file:
        file.write('{"id": \n{"id": "odd", "instruction": "x", "max_tokens": 0}\n')
    assert run(prompts, out).counts() == {"rows": 15, "answered_before": 0, "answered": 15, "errors": 3}
    answers = read(out)
    assert [answers[number]["text"] for number in range(12)] == [
        f"one two three then {number} " for number in range(12)
    ]
    assert [answers[number]["id"] for number in range(13)] == [f"p{number}" for number in range(13)]
    assert answers[3]["parallel"]["num_promises"] == 1
    assert answers[3]["error"] is None
    assert answers[12]["error"] == "InputError: the prompt is refused"
    assert "line 14: not JSON" in answers[13]["error"]
    assert answers[14]["error"] == "InputError: max_tokens is 0; allowed: 1 or more"
    content = out.read_bytes()
    assert run(prompts, out).counts() == {"rows": 15, "answered_before": 15, "answered": 0, "errors": 3}
    assert out.read_bytes() == content


def test_a_run_that_was_left_goes_on(tmp_path: Path) -> None:
    """Guards exactly one answer a row where a run ends in its middle; its rows share an engine's steps."""
    job = replace(JOB, make_decoder=MakeFakeDecoder(step_s=0.01))
    prompts, out = write(tmp_path / "in.jsonl", [f"a b c {number}" for number in range(20)]), tmp_path / "out.jsonl"
    steps = run_batch(prompts, out, job, replace(POOL, num_workers=1))
    assert next(steps).num_done == 0
    while next(steps).num_done < 5:
        pass
    steps.close()
    first = read(out)
    assert 5 <= len(first) < 20
    assert run(prompts, out, job).num_before == len(first)
    answers = read(out)
    assert answers.items() >= first.items()
    assert [answers[number]["text"] for number in range(20)] == [f"a b c {number} " for number in range(20)]


def test_answers_to_other_prompts_are_no_beginning(tmp_path: Path) -> None:
    prompts, out = write(tmp_path / "in.jsonl", ["a"]), tmp_path / "out.jsonl"
    out.write_text('{"id": "other", "row": 0, "error": null}\n')
    with pytest.raises(InputError, match="row 0 has id 'other'"):
        run(prompts, out)


def test_a_row_that_kills_its_worker_does_not_go_on_for_ever(tmp_path: Path) -> None:
    """Guards against a row that takes one process after the other with it."""
    prompts = write(tmp_path / "in.jsonl", ["a b", "die"])
    with pytest.raises(ReplicaError):
        run(prompts, tmp_path / "out.jsonl")


def test_an_engine_that_cannot_be_made_ends_the_job(tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.jsonl", ["a b"])
    job = replace(JOB, make_decoder=_no_weights)
    with pytest.raises(Exception, match="no such weights"):
        run(prompts, tmp_path / "out.jsonl", job)


def test_a_pool_that_ray_has_no_room_for_is_refused(tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.jsonl", ["a b"])
    with pytest.raises(InputError, match="90 workers need 180 CPUs; this Ray has 4"):
        run(prompts, tmp_path / "out.jsonl", pool=Pool(num_workers=90, cpus_per_worker=2))


def _no_weights(_: str) -> Any:
    raise InputError("no such weights")
