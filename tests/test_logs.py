import json
import logging
import sys
from typing import Any

import pytest

from pasta_ray.errors import InputError
from pasta_ray.logs import JsonFormatter, LogConfig, TextFormatter, fields


def record(message: str, exc_info: Any = None, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("pasta_ray.x", logging.INFO, __file__, 1, message, None, exc_info)
    made.__dict__.update(fields(**values))
    return made


def test_a_line_of_json_has_every_field_and_is_one_line() -> None:
    """Guards a collector that takes each line for a record: whatever a user's text holds, it is one."""
    line = JsonFormatter().format(record("asked", trace="t1", user="eve\n{}", tokens=3, none=None))
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed.pop("time").endswith("+00:00")
    told = {"trace": "t1", "user": "eve\n{}", "tokens": 3}
    assert parsed == {"level": "info", "logger": "pasta_ray.x", "message": "asked", **told}


def test_a_traceback_stands_in_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        line = JsonFormatter().format(record("failed", sys.exc_info()))
    assert json.loads(line)["error"].endswith("ValueError: no")


def test_text_quotes_what_looks_like_a_line_of_ours() -> None:
    line = TextFormatter().format(record("asked", trace="t1", user="eve\nINFO fine", path="/v1/models", s="a b=c"))
    assert line.endswith(r"INFO asked trace=t1 user='eve\nINFO fine' path=/v1/models s='a b=c'")


@pytest.mark.parametrize(("name", "value"), [("format", "xml"), ("level", "loud")])
def test_an_unknown_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"log {name} is '{value}'; allowed: "):
        LogConfig(**{name: value})  # type: ignore[arg-type]
