"""The whole pipeline with real actors and a fake decoder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.batch.rows import Defaults
from pasta_ray.batch.run import Pool, Progress, run_batch
from pasta_ray.batch.worker import Job
from pasta_ray.errors import InputError
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


def test_every_row_gets_one_answer_although_the_run_was_left_in_its_middle(tmp_path: Path) -> None:
    """Guards against a bad row that ends the job, rows lost with it, and rows that a second run answers again."""
    job = replace(JOB, make_decoder=MakeFakeDecoder(step_s=0.02))
    words = [f"fork then {number}" for number in range(20)]
    prompts, out = write(tmp_path / "in.jsonl", [*words, "refuse"]), tmp_path / "out.jsonl"
    with prompts.open("a") as file:
        file.write('{"id": \n{"id": "odd", "instruction": "x", "max_tokens": 0}\n')
    steps = run_batch(prompts, out, job, replace(POOL, num_workers=1))
    assert next(steps).num_done == 0
    while next(steps).num_done < 8:
        pass
    steps.close()
    first = read(out)
    assert 8 <= len(first) < 20

    counts = run(prompts, out, job).counts()
    assert counts == {"rows": 23, "answered_before": len(first), "answered": 23 - len(first), "errors": 3}
    answers = read(out)
    assert answers.items() >= first.items()
    assert [answers[number]["text"] for number in range(20)] == [
        f"one two three then {number} " for number in range(20)
    ]
    assert [answers[number]["id"] for number in range(21)] == [f"p{number}" for number in range(21)]
    assert answers[3]["parallel"]["num_promises"] == 1
    assert answers[3]["error"] is None
    assert answers[20]["error"] == "InputError: the prompt is refused"
    assert "line 22: not JSON" in answers[21]["error"]
    assert answers[22]["error"] == "InputError: max_tokens is 0; allowed: 1 or more"

    content = out.read_bytes()
    assert run(prompts, out, job).counts() == {"rows": 23, "answered_before": 23, "answered": 0, "errors": 3}
    assert out.read_bytes() == content


def test_answers_to_other_prompts_are_no_beginning(tmp_path: Path) -> None:
    prompts, out = write(tmp_path / "in.jsonl", ["a"]), tmp_path / "out.jsonl"
    out.write_text('{"id": "other", "row": 0, "error": null}\n')
    with pytest.raises(InputError, match="row 0 has id 'other'"):
        run(prompts, out)


@pytest.mark.slow
def test_a_row_that_kills_its_worker_has_that_as_its_answer(tmp_path: Path) -> None:
    """Guards against a row that takes one process after the other with it, and its neighbours' answers too."""
    job = replace(JOB, make_decoder=MakeFakeDecoder(step_s=0.02))
    prompts = write(tmp_path / "in.jsonl", ["a b c", "d e die", "f g h", "i j k"])
    assert run(prompts, tmp_path / "out.jsonl", job, replace(POOL, num_workers=1)).num_errors == 1
    answers = read(tmp_path / "out.jsonl")
    assert answers[1]["error"] == "FatalRowError: the process that decoded it died, 3 times"
    assert [answers[number]["text"] for number in (0, 2, 3)] == ["a b c ", "f g h ", "i j k "]


def test_an_engine_that_cannot_be_made_ends_the_job(tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.jsonl", ["a b"])
    job = replace(JOB, make_decoder=_no_weights)
    with pytest.raises(InputError, match="no such weights"):
        run(prompts, tmp_path / "out.jsonl", job)


def test_a_pool_that_ray_has_no_room_for_is_refused(tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.jsonl", ["a b"])
    with pytest.raises(InputError, match="90 workers need 180 CPUs; this Ray has 4"):
        run(prompts, tmp_path / "out.jsonl", pool=Pool(num_workers=90, cpus_per_worker=2))


def _no_weights(_: str) -> Any:
    raise InputError("no such weights")
