"""One line a happening, as text for people or as JSON for machines, with the same fields in both.

    logger.info("answered", extra=fields(trace="7f3a…", request="chatcmpl-…", tokens=120))

A trace id is a client's `x-request-id`, or one of ours: it stands in every line that its request causes, in whichever
process.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pasta_ray.errors import InputError

ROOT = "pasta_ray"
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class LogConfig:
    """How every process of a service writes its log. ``debug`` has a line for each branch that opens or closes."""

    format: LogFormat = "text"
    level: LogLevel = "info"

    def __post_init__(self) -> None:
        for name, value, allowed in (("format", self.format, LogFormat), ("level", self.level, LogLevel)):
            if value not in get_args(allowed):
                raise InputError(f"log {name} is {value!r}; allowed: {', '.join(get_args(allowed))}")


def fields(**values: object) -> dict[str, Mapping[str, object]]:
    """For ``extra=``: what a line says beside its message. Those that are None are left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time (UTC), level, logger, message, the fields, and an error's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """The same for people: ``time level message name=value …``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        told = "".join(f" {name}={_word(value)}" for name, value in getattr(record, "fields", {}).items())
        return super().formatMessage(record) + told


def _word(value: object) -> str:
    """Quoted where it could be taken for something else: a user's text must not look like a line of ours."""
    text = str(value)
    return text if re.fullmatch(r"[\w.:/#+-]+", text, re.ASCII) else repr(text)


def configure(config: LogConfig) -> None:
    """Send this process's lines to its standard error, which Ray keeps in its session's folder, and nowhere else."""
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    logger = logging.getLogger(ROOT)
    logger.handlers = [handler]
    logger.setLevel(config.level.upper())
    logger.propagate = False
