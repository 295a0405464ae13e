"""`pasta-ray parse`: PASTA-LANG text to its tree."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pasta_ray.errors import InputError


def parse(
    file: Annotated[str, typer.Argument(help="A file of PASTA-LANG text; - reads standard input.")] = "-",
    positions: Annotated[
        str, typer.Option(help="pred-10x, pred-1x or fixed: which lengths its promises may predict.")
    ] = "pred-10x",
) -> None:
    """Print the tree of a PASTA-LANG text as JSON. What is wrong with it is said with line and column, and exit 2."""
    from pasta_ray.lang import PositionStrategy
    from pasta_ray.lang import parse as parse_text

    strategy = PositionStrategy.named(positions)
    text = sys.stdin.buffer.read() if file == "-" else _read(Path(file))
    try:
        document = parse_text(text.decode("utf-8"), strategy)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8: {error.reason} at byte {error.start}") from error
    typer.echo(json.dumps(document.to_dict(), ensure_ascii=False, indent=2))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
