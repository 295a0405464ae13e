"""Prompts and answers as JSON lines. Complaints name file and line, and a run that was cut off can go on."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pasta_ray.errors import InputError
from pasta_ray.train.jsonl import read_appended, read_json_lines

if TYPE_CHECKING:
    from pasta_ray.engine.messages import Report


@dataclass(frozen=True)
class Prompt:
    id: str
    instruction: str


def read_prompts(path: Path) -> list[Prompt]:
    """Lines of ``{"id", "instruction", …}``; other fields are left alone. Raises InputError with file and line."""
    prompts: dict[str, Prompt] = {}
    for number, record in read_json_lines(path):
        where = f"{path}, line {number}"
        if not isinstance(record, dict):
            raise InputError(f"{where}: an object is expected, not {type(record).__name__}")
        for field in ("id", "instruction"):
            if not isinstance(record.get(field), str) or not record[field]:
                raise InputError(f"{where}: field {field!r} must be a text that is not empty")
        if record["id"] in prompts:
            raise InputError(f"{where}: id {record['id']!r} was used before")
        prompts[record["id"]] = Prompt(record["id"], record["instruction"])
    return list(prompts.values())


def read_done(path: Path) -> set[str]:
    """Ids that are answered already. A last line that a crash has cut off is removed, and so answered again; any other
    line that is no report is an InputError, and the file stays as it is."""
    return {report["id"] for report in read_appended(path)}


def answer_line(report: "Report") -> str:
    """A report as one line of JSON."""
    return json.dumps(dataclasses.asdict(report), ensure_ascii=False)
