"""JSON lines that people write by hand or a crash cuts off: every complaint names file and line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pasta_ray.errors import InputError

Model = TypeVar("Model", bound=BaseModel)

LINE_START = '{"id": '  # of every line that a command of ours appends


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers, from 1, and values; blank lines are skipped. Raises InputError."""
    for number, line in enumerate(_decode(path, _read(path)).split("\n"), 1):
        if line.strip():
            yield number, _parse(path, number, line)


def read_models(path: Path, kind: type[Model]) -> Iterator[tuple[str, Model]]:
    """Each line as a ``kind``, with where it stands, for a complaint. Raises InputError."""
    for number, values in read_json_lines(path):
        where = f"{path}, line {number}"
        try:
            yield where, kind.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error)}") from error


def read_appended(path: Path, start: str = LINE_START) -> list[Any]:
    """The values of a file to which an earlier run appended lines that begin with ``start``; none where there is no
    such file. A last line that a crash has cut off, be it in the middle of a character, is removed from it. Raises
    InputError, and leaves the file as it is, where a line is none of such a run's."""
    if not path.exists():
        return []
    content = _read(path)
    end = content.rfind(b"\n") + 1
    whole, rest, opening = _decode(path, content[:end]), content[end:], start.encode()
    lines = whole.split("\n")[:-1]
    ours = [line.startswith(start) for line in lines] + [rest.startswith(opening) or opening.startswith(rest)]
    if not all(ours):
        raise InputError(f"{path}, line {ours.index(False) + 1}: not written by an earlier run; choose another file")
    values = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    if rest:
        os.truncate(path, end)
    return values


def to_line(value: Any) -> str:
    """A value as one line, its newline included."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: not JSON: {error}") from error


def explain(error: ValidationError) -> str:
    """Pydantic's complaints in one line: field, what is wrong."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the value'}: {e['msg']}" for e in error.errors())
