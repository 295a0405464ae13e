"""JSON lines that people write by hand or cut by accident: every complaint names file and line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pasta_ray.errors import InputError

LINE_START = b'{"id": '  # of every line that a command of ours appends


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers, from 1, and values; blank lines are skipped. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON: {error}") from error


def read_done(path: Path, what: str) -> list[dict[str, Any]]:
    """The lines that an earlier run of the same command has written, none where there is no file.

    A last line that a crash has cut off is removed from the file, and so made again. Any other line that is not JSON
    with an ``id`` is an InputError, which calls such lines ``what``, and the file stays as it is.
    """
    try:
        *whole, rest = path.read_bytes().split(b"\n")  # behind the last newline is nothing, or what a crash has left
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    done = []
    for number, line in enumerate(whole, 1):
        try:
            values = json.loads(line)
            values["id"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: not {what} of an earlier run: {error}") from error
        done.append(values)
    if rest:
        if rest[: len(LINE_START)] != LINE_START[: len(rest)]:
            raise InputError(f"{path}, line {len(whole) + 1}: not {what} of an earlier run; choose another file")
        os.truncate(path, sum(len(line) + 1 for line in whole))
    return done


def explain(error: ValidationError) -> str:
    """Pydantic's complaints in one line: field, what is wrong."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the value'}: {e['msg']}" for e in error.errors())
