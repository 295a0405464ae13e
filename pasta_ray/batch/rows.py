"""A file of prompts as rows, and a row as a request. Nothing here stops at a bad row: its fault is its answer."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pasta_ray.actors.loading import TokenizerLike
from pasta_ray.engine.messages import Report, Request, Sampling
from pasta_ray.errors import InputError

PARQUET, JSON_LINES = ".parquet", ".jsonl"
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Row:
    """The ``number``-th row of a file, from 0. One without ``values`` cannot be read, and ``fault`` says why."""

    number: int
    values: dict[str, Any] | None = None
    fault: str | None = None

    @property
    def id(self) -> str | None:
        """What its answer is found by, beside its number; None where it has none."""
        id_ = (self.values or {}).get("id")
        return id_ if isinstance(id_, str) else None


@dataclass(frozen=True)
class Defaults:
    """How the rows are answered that do not say so themselves."""

    method: str
    max_tokens: int = 512
    max_branches: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_branches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        Sampling(self.temperature, self.top_p, self.seed)


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class _Prompt(BaseModel):
    """The fields of a row that are read; others belong to whoever wrote them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    instruction: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None
    method: str | None = None
    max_tokens: int | None = None
    max_branches: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> "_Prompt":
        if (self.instruction is None) == (self.messages is None):
            raise ValueError("a row has an instruction, or messages: one of the two")
        return self


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl or .parquet file. Raises InputError for a file that is neither, or cannot be opened."""
    if path.suffix not in (JSON_LINES, PARQUET):
        raise InputError(f"{path}: its name ends with {path.suffix!r}; allowed: {JSON_LINES}, {PARQUET}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        yield from _read_parquet(path) if path.suffix == PARQUET else _read_json_lines(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def _read_json_lines(path: Path) -> Iterator[Row]:
    number = 0
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name}, line {line_number}"
            try:
                values = json.loads(line)
            except ValueError as error:  # of UTF-8 too
                yield Row(number, fault=f"{where}: not JSON: {error}")
            else:
                fault = None if isinstance(values, dict) else f"{where}: an object is expected"
                yield Row(number, None if fault else values, fault)
            number += 1


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowInvalid

    try:
        batches = pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE)
    except ArrowInvalid as error:
        raise InputError(f"{path}: not Parquet: {error}") from error
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            yield Row(number, values)
            number += 1


def make_request(row: Row, defaults: Defaults, tokenizer: TokenizerLike) -> Request:
    """Raises InputError for a row that cannot be asked."""
    if row.values is None:
        raise InputError(row.fault or "the row cannot be read")
    try:
        prompt = _Prompt.model_validate(row.values)
    except ValidationError as error:
        raise InputError(_explain(error)) from error
    messages = [message.model_dump() for message in prompt.messages or ()]
    messages = messages or [{"role": "user", "content": prompt.instruction}]
    told = prompt.model_dump(exclude={"instruction", "messages"}, exclude_none=True)
    said = asdict(defaults) | told
    return Request(
        id=str(row.number),
        prompt_ids=tuple(tokenizer.encode_chat(messages)),
        method=said["method"],
        max_tokens=said["max_tokens"],
        max_branches=said["max_branches"],
        sampling=Sampling(said["temperature"], said["top_p"], said["seed"]),
        messages=tuple((message["role"], message["content"]) for message in messages),
    )


def answer_line(row: Row, report: Report | None, error: Exception | None = None) -> str:
    """A row's answer as one line of JSON: the report, or what kept the row from having one."""
    fault = None if error is None else f"{type(error).__name__}: {error}"
    found = {} if report is None else {name: value for name, value in asdict(report).items() if name != "id"}
    return json.dumps({"id": row.id, "row": row.number, "error": fault, **found}, ensure_ascii=False) + "\n"


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    field, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message
