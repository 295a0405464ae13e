"""The prompts of an evaluation: JSON lines, or AlpacaEval's own JSON, from a file or from the hub."""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from pydantic import ValidationError

from pasta_ray.errors import InputError
from pasta_ray.train.jsonl import explain, read_json_lines
from pasta_ray.train.sample import Prompt as BasePrompt

Item = TypeVar("Item")

HUB_NAME = "alpacaeval"
HUB_REPO = "tatsu-lab/alpaca_eval"
HUB_PROMPTS, HUB_DIFFICULTY = "alpaca_eval_gpt4_baseline.json", "instruction_difficulty.csv"


class Prompt(BasePrompt):
    """``reference_output`` is what a judge may compare answers with, ``instruction_difficulty`` AlpacaEval 2's term of
    the prompt. Figures are also given by ``group``: the category, or else the source."""

    category: str | None = None
    reference_output: str | None = None
    instruction_difficulty: float | None = None

    @property
    def group(self) -> str | None:
        return self.category or self.source


@dataclass(frozen=True)
class PromptSet:
    """``digest`` is the sha256 of the file that they were read from."""

    prompts: tuple[Prompt, ...]
    digest: str


def load_prompts(name: str, limit: int | None = None) -> PromptSet:
    """A file's, or the hub's AlpacaEval for ``alpacaeval``; ``limit`` of them, evenly spaced. Raises InputError with
    file and line."""
    path = _from_hub(HUB_PROMPTS) if name == HUB_NAME else Path(name)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    records = _alpacaeval(path) if path.suffix == ".json" else read_json_lines(path)
    prompts = _check(path, records)
    if name == HUB_NAME:
        difficulty = _difficulties(_from_hub(HUB_DIFFICULTY))
        prompts = [
            prompt.model_copy(update={"instruction_difficulty": difficulty.get(index)})
            for index, prompt in enumerate(prompts)
        ]
    return PromptSet(tuple(evenly(prompts, limit)), digest)


def evenly(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """``limit`` of them, evenly spaced; all where there are no more."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _check(path: Path, records: Iterator[tuple[int, Any]]) -> list[Prompt]:
    found: dict[str, Prompt] = {}
    for number, record in records:
        where = f"{path}, line {number}" if path.suffix != ".json" else f"{path}, record {number}"
        try:
            prompt = Prompt.model_validate(record)
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error)}") from error
        if not prompt.id or not prompt.instruction:
            raise InputError(f"{where}: id and instruction must not be empty")
        if prompt.id in found:
            raise InputError(f"{where}: id {prompt.id!r} was used before")
        found[prompt.id] = prompt
    if not found:
        raise InputError(f"{path}: no prompts")
    return list(found.values())


def _alpacaeval(path: Path) -> Iterator[tuple[int, Any]]:
    """Records of ``{"instruction", "output", "dataset"}``; the output is the reference's, the place is the id."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{path}: a list of objects is expected")
    for number, record in enumerate(records):
        yield (
            number,
            {
                "id": f"alpacaeval-{number}",
                "instruction": record.get("instruction"),
                "source": record.get("dataset"),
                "reference_output": record.get("output"),
            },
        )


def _difficulties(path: Path) -> dict[int, float]:
    with path.open(encoding="utf-8", newline="") as file:
        return {int(row[0]): float(row[1]) for row in list(csv.reader(file))[1:]}


def _from_hub(name: str) -> Path:
    try:
        return Path(hf_hub_download(HUB_REPO, name, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"the hub does not give {HUB_REPO}'s {name}; name a file instead: {error}") from error
