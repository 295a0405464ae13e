"""Prompts and answers as JSON lines. Complaints name file and line, and a run that was cut off can go on."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pasta_ray.errors import InputError
from pasta_ray.train import jsonl

if TYPE_CHECKING:
    from pasta_ray.engine.messages import Report


@dataclass(frozen=True)
class Prompt:
    id: str
    instruction: str


def read_prompts(path: Path) -> list[Prompt]:
    """Lines of ``{"id", "instruction", …}``; other fields are left alone. Raises InputError with file and line."""
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON: {error}") from error
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
    """Ids that are answered already; see train/jsonl.py for what a crash has left, and for what is no report."""
    return {report["id"] for report in jsonl.read_done(path, "an answer")}


def answer_line(report: "Report") -> str:
    """A report as one line of JSON."""
    return json.dumps(dataclasses.asdict(report), ensure_ascii=False)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
