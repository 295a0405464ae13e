import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pasta_ray.batch.journal import Journal, writing
from pasta_ray.batch.rows import Row, answer_line
from pasta_ray.engine.messages import BranchReport, Parallel, Report, Timing, Usage
from pasta_ray.errors import InputError


def line(number: int, error: Exception | None = None) -> str:
    branch = BranchReport("0", None, None, None, 3, 1, 3, 0.0, 0.5, "r0", "stop")
    usage, timing, parallel = Usage(2, 3, 0), Timing(0.5, 0.1, 0.1), Parallel(0, 0, 1, 3, 3, 1.0)
    report = Report(str(number), "pasta", f"té {number}", "doc", "stop", usage, timing, parallel, (branch,))
    return answer_line(Row(number, {"id": f"p{number}"}), None if error else report, error)


def write(path: Path, *lines: str) -> None:
    with writing(path) as journal:
        for each in lines:
            journal.add(each)


def test_a_kill_at_any_byte_loses_the_torn_answer_and_no_other(tmp_path: Path) -> None:
    """Guards exactly one answer a row: every prefix of the file, as a kill leaves it, goes on to the same answers."""
    path = tmp_path / "out.jsonl"
    lines = [line(number) for number in range(3)]
    write(path, *lines)
    whole = path.read_bytes()
    assert [json.loads(each)["row"] for each in whole.splitlines()] == [0, 1, 2]
    ends = [place + step for place, byte in enumerate(whole) if byte == ord("\n") for step in (-1, 0, 1)]
    for cut in {*range(0, len(whole), 13), *ends}:
        path.write_bytes(whole[:cut])
        done = Journal(path).done
        assert done == {number: f"p{number}" for number in range(whole[:cut].count(b"\n"))}
        write(path, *lines[len(done) :])
        assert path.read_bytes() == whole


def test_an_answer_that_comes_twice_is_written_once(tmp_path: Path) -> None:
    write(tmp_path / "out.jsonl", line(1), line(0), line(1))
    assert [json.loads(each)["row"] for each in (tmp_path / "out.jsonl").read_text().splitlines()] == [1, 0]


def test_parquet_appears_when_it_is_whole_and_in_the_order_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    write(path, line(2), line(0, InputError("too long")))
    assert not path.exists()
    with writing(path) as journal:
        assert journal.done == {2: "p2", 0: "p0"}
        journal.add(line(1))
        journal.finish()
    rows = pq.read_table(path).to_pylist()
    assert [(row["id"], row["row"], row["text"]) for row in rows] == [
        ("p0", 0, None),
        ("p1", 1, "té 1"),
        ("p2", 2, "té 2"),
    ]
    assert rows[0]["error"] == "InputError: too long"
    assert rows[1]["branches"][0]["replica"] == "r0"
    assert rows[1]["parallel"]["theoretical_speedup"] == 1.0
    assert sorted(each.name for each in tmp_path.iterdir() if not each.name.endswith(".lock")) == ["out.parquet"]
    with pytest.raises(InputError, match="is there already"):
        Journal(path)


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for content in ("my notes\n", '{"id": "a"}\n', line(0) + line(0)):
        path.write_text(content)
        with pytest.raises(InputError, match="no answer of an earlier run"):
            Journal(path)
        assert path.read_text() == content


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with writing(path), pytest.raises(InputError, match="another run is writing"), writing(path):
        pass
