import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pasta_ray.batch.rows import Defaults, Row, answer_line, make_request, read_rows
from pasta_ray.errors import InputError
from tests.fakes import FakeTokenizer

DEFAULTS = Defaults(method="sequential", max_tokens=9, seed=7)


def request(**values: Any) -> Any:
    return make_request(Row(3, values), DEFAULTS, FakeTokenizer())


def test_a_row_says_how_it_is_answered_and_the_defaults_say_the_rest() -> None:
    plain = request(id="a", instruction="hi", source="x")
    assert (plain.id, plain.method, plain.max_tokens, plain.sampling.seed) == ("3", "sequential", 9, 7)
    own = request(instruction="hi", method="pasta", max_tokens=4, temperature=0.5, seed=None)
    assert (own.method, own.max_tokens, own.sampling.temperature, own.sampling.seed) == ("pasta", 4, 0.5, 7)


def test_a_conversation_is_asked_as_one() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    asked = request(messages=messages)
    assert asked.messages == (("system", "be brief"), ("user", "hi"))
    assert FakeTokenizer().decode(asked.prompt_ids) == "be brief\nhi"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "an instruction, or messages"),
        ({"instruction": "a", "messages": [{"role": "user", "content": "b"}]}, "one of the two"),
        ({"instruction": ""}, "instruction: "),
        ({"instruction": 5}, "instruction: "),
        ({"messages": [{"role": "tool", "content": "b"}]}, "messages.0.role: "),
        ({"instruction": "a", "max_tokens": 0}, "max_tokens is 0"),
        ({"instruction": "a", "temperature": 3}, "temperature is 3"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        request(**values)


def test_a_line_that_cannot_be_read_is_a_row_with_a_fault(tmp_path: Path) -> None:
    """Guards the rows behind a bad line: they keep their numbers, and nothing is lost without a word."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"id": "a", "instruction": "x"}\n\n{"id": \n[1]\n\xff\n{"id": 5, "instruction": "y"}')
    rows = list(read_rows(file))
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    assert [row.id for row in rows] == ["a", None, None, None, None]
    assert [row.fault is None for row in rows] == [True, False, False, False, True]
    assert "in.jsonl, line 3: not JSON" in str(rows[1].fault)
    assert "line 4: an object" in str(rows[2].fault)
    answer = json.loads(answer_line(rows[1], None, InputError(rows[1].fault)))
    assert (answer["id"], answer["row"]) == (None, 1)
    assert answer["error"].startswith("InputError: in.jsonl, line 3")


def test_parquet_rows_are_those_of_json_lines(tmp_path: Path) -> None:
    values = [{"id": f"p{i}", "instruction": f"say {i}", "seed": i if i % 2 else None} for i in range(2500)]
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "in.parquet")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in values))
    assert list(read_rows(tmp_path / "in.parquet")) == list(read_rows(tmp_path / "in.jsonl"))


@pytest.mark.parametrize(("name", "message"), [("in.csv", "allowed: .jsonl, .parquet"), ("no.jsonl", "no such file")])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "in.csv").write_text("id,instruction")
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("{}")
    with pytest.raises(InputError, match="not Parquet"):
        list(read_rows(tmp_path / "in.parquet"))
