"""`pasta-ray doctor`: what of this machine can be used, and what is wrong."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pasta_ray.errors import InputError

if TYPE_CHECKING:
    from pasta_ray.doctor import Finding

STYLES = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of HTTP: is it free?")] = 8000,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where models are kept.  [default: ~/.cache/pasta-ray]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what of this machine can be used, and what is wrong. Exit 1 where something is."""
    try:
        from pasta_ray.doctor import examine
        from pasta_ray.engine.config import default_cache_dir
    except ImportError as error:
        raise InputError(f"the installation is broken: {error}; install pasta-ray again") from error

    findings = examine(cache_dir or default_cache_dir(), port)
    wrong = any(finding.state == "wrong" for finding in findings)
    if as_json:
        body = {"ok": not wrong, "findings": [dataclasses.asdict(finding) for finding in findings]}
        typer.echo(json.dumps(body, ensure_ascii=False, indent=2))
    else:
        Console().print(_table(findings))
    if wrong:
        raise typer.Exit(1)


def _table(findings: "list[Finding]") -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        said = Text(finding.found)
        if finding.advice:
            said.append(f"\n{finding.advice}", STYLES[finding.state])
        table.add_row(Text(finding.state, STYLES[finding.state]), finding.name, said)
    return table
