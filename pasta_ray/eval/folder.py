"""An evaluation's folder: what it was told, where it was measured, and all that it has found so far."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from pasta_ray.engine.weights import resolve_adapter
from pasta_ray.errors import InputError
from pasta_ray.eval.bench.machine import Machine
from pasta_ray.eval.plan import EvalPlan
from pasta_ray.eval.prompts import PromptSet
from pasta_ray.train.jsonl import read_appended, to_line

FREE = {"limit", "quality", "baseline", "load"}  # how many answers there are to be, and what is done with them


class Told(BaseModel):
    """`plan.json`: the plan, with digests of the files that it names."""

    model_config = ConfigDict(frozen=True)

    plan: EvalPlan
    prompts_sha256: str
    adapters_sha256: dict[str, str]


class Sitting(BaseModel):
    """One start of the run: where, and how busy the machine was with other work (its load average of a minute)."""

    model_config = ConfigDict(frozen=True)

    id: int
    machine: Machine
    load_average: float | None = None


class EvalFolder:
    """Files of an evaluation. One process at a time writes: :meth:`lock`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told = path / "plan.json"
        self.prompts = path / "prompts.jsonl"
        self.answers = path / "answers.jsonl"
        self.sittings = path / "machine.jsonl"
        self.verdicts = path / "verdicts.jsonl"
        self.perplexities = path / "perplexities.jsonl"
        self.load = path / "load.jsonl"
        self.report = path / "report.json"
        self.markdown = path / "report.md"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Raises InputError where another process is at work in the folder."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from error
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise InputError(f"{self.path}: another evaluation is at work here; allowed: another folder") from error

    def claim(self, plan: EvalPlan, prompts: PromptSet) -> None:
        """Keep what the evaluation is told, prompts too: a report needs this folder alone. Raises InputError where
        answers are there that were made otherwise."""
        told = Told(plan=plan, prompts_sha256=prompts.digest, adapters_sha256=_adapter_digests(plan))
        if self.told.is_file() and self.answers.is_file():
            before, now = _facts(self.read_told()), _facts(told)
            for name, value in now.items():
                if before.get(name) != value:
                    raise InputError(
                        f"{self.path}: its answers were made with {name} {before.get(name)!r}, and now it is {value!r};"
                        " allowed: the same, or another folder"
                    )
        lines = (to_line(prompt.model_dump(exclude_none=True)) for prompt in prompts.prompts)
        write_whole(self.prompts, "".join(lines))
        write_whole(self.told, told.model_dump_json(indent=1) + "\n")

    def read_told(self) -> Told:
        """Raises InputError where the folder is none of an evaluation."""
        try:
            return Told.model_validate_json(self.told.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.told}: not written by `pasta-ray eval run`: {error}") from error

    def sit_down(self, machine: Machine) -> None:
        """Note that the run starts, or goes on, here."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        sitting = Sitting(id=len(read_appended(self.sittings)), machine=machine, load_average=load)
        with self.sittings.open("a", encoding="utf-8") as file:
            file.write(to_line(sitting.model_dump(mode="json")))

    def read_sittings(self) -> list[Sitting]:
        return [Sitting.model_validate(line) for line in read_appended(self.sittings)]


def write_whole(path: Path, text: str) -> None:
    """The file is the old or the new one, whenever this is cut off."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _facts(told: Told) -> dict[str, Any]:
    """What answers depend on. Prompts count by what is in them, wherever they lie."""
    facts: dict[str, Any] = json.loads(told.model_dump_json())
    plan = {name: value for name, value in facts.pop("plan").items() if name not in FREE | {"prompts"}}
    return plan | facts


def _adapter_digests(plan: EvalPlan) -> dict[str, str]:
    found = {}
    for name in sorted({system.adapter for system in plan.systems if system.adapter and not system.base_url}):
        digest = hashlib.sha256()
        for path in sorted(
            path for path in resolve_adapter(name).iterdir() if path.suffix in (".safetensors", ".json")
        ):
            digest.update(path.read_bytes())
        found[name] = digest.hexdigest()
    return found
