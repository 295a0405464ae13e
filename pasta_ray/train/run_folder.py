"""A run's folder: what the run was told, its log, and whether it is done."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pasta_ray.errors import InputError
from pasta_ray.train.config import RunConfig

CONFIG_FILE, PLAN_FILE, METRICS_FILE = "config.json", "plan.json", "metrics.jsonl"
ADAPTER, MODEL = "adapter", "model"


class RunFolder:
    """``path`` is on a file system that all of the cluster's nodes see."""

    def __init__(self, config: RunConfig) -> None:
        self.path = config.runs.resolve() / config.name
        self.result = self.path / (ADAPTER if config.mode == "lora" else MODEL)
        self.metrics = self.path / METRICS_FILE

    @property
    def is_finished(self) -> bool:
        return self.result.is_dir()

    def claim(self, config: RunConfig) -> None:
        """Keep what the run is told; raise InputError where a run of this name began otherwise and is to go on.

        Files count by what is in them, wherever they lie. A run without a checkpoint may begin anew.
        """
        told, path = describe(config), self.path / CONFIG_FILE
        if path.is_file() and (self.is_finished or any(self.path.glob("checkpoint_*"))):
            began = json.loads(path.read_text(encoding="utf-8"))
            for name, value in told.items():
                before = began.get(name, type(config).model_fields[name].get_default(call_default_factory=True))
                if value != before:
                    raise InputError(
                        f"{name}: run {config.name} began with {_shown(before)}, this is {_shown(value)};"
                        f" allowed: the same, another name, or to remove {self.path}"
                    )
        self.path.mkdir(parents=True, exist_ok=True)
        _write(path, told)

    def keep_plan(self, report: Mapping[str, object]) -> None:
        _write(self.path / PLAN_FILE, report)

    def read_plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.path / PLAN_FILE).read_text(encoding="utf-8"))
        return plan

    def log(self, metrics: Mapping[str, float]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the log's lines of steps that have to be done again."""
        kept = [json.dumps(metrics) + "\n" for metrics in self.read_log() if metrics["step"] <= step]
        self.metrics.write_text("".join(kept), encoding="utf-8")

    def read_log(self) -> list[dict[str, float]]:
        """All steps' metrics; a last line that a killed worker did not finish is none."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]


def describe(config: RunConfig) -> dict[str, Any]:
    """Everything that the run's losses depend on: its fields, and digests in place of files and folders of files."""
    fields = config.model_dump(mode="json", exclude=set(config.FREE))
    for name in fields:
        value = getattr(config, name)
        if isinstance(value, Path):
            fields[name] = _digest(value, name)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Path):
            fields[name] = [_digest(path, name) for path in value]
    return fields


def _digest(path: Path, name: str) -> str:
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(file.read_bytes())
    except OSError as error:
        raise InputError(f"{name}: {file}: {error.strerror}") from error
    return f"sha256:{digest.hexdigest()}"


def _shown(value: object) -> str:
    values: Sequence[object] = value if isinstance(value, list) else [value]
    return "other files" if any(str(one).startswith("sha256:") for one in values) else repr(value)


def _write(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
