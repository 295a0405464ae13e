"""Answers as a Parquet file, whose columns are a report's fields."""

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from pasta_ray.engine.messages import Report

ROW_GROUP = 1024
SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def answer_schema() -> pa.Schema:
    """Read from the report's own types: inferred from values, a column that is null everywhere would have none."""
    report = [field for field in arrow_type(Report) if field.name != "id"]
    row = [pa.field("id", pa.string()), pa.field("row", pa.int64()), pa.field("error", pa.string())]
    return pa.schema(row + report)


def arrow_type(hint: Any) -> pa.DataType:
    """The Arrow type for the values of a dataclass field annotated with ``hint``."""
    origin = get_origin(hint)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return pa.struct([(field.name, arrow_type(hints[field.name])) for field in fields(hint)])
    if origin is tuple:
        return pa.list_(arrow_type(get_args(hint)[0]))
    if origin is Literal:
        return pa.string()
    if origin in (Union, UnionType):
        (kind,) = [arg for arg in get_args(hint) if arg is not type(None)]
        return arrow_type(kind)
    return SCALARS[hint]


def write_parquet(lines: Path, offsets: Sequence[int], out: Path) -> None:
    """The JSON lines that begin at ``offsets``, in that order. The file appears when it is whole."""
    schema, partial = answer_schema(), out.with_name(f".{out.name}.partial")
    with lines.open("rb") as file, pq.ParquetWriter(partial, schema) as writer:
        for start in range(0, len(offsets), ROW_GROUP):
            answers = []
            for offset in offsets[start : start + ROW_GROUP]:
                file.seek(offset)
                answers.append(json.loads(file.readline()))
            writer.write_table(pa.Table.from_pylist(answers, schema=schema))
    partial.replace(out)
