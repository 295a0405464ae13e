"""Pages of the site that are made of the code: every command with its options, and every configuration's fields."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer
from pydantic import BaseModel

Table = Sequence[tuple[str, ...]]


def pages() -> dict[str, str]:
    """Markdown by the page's place in the site."""
    return {"reference/cli.md": command_line(), "reference/options.md": options()}


def command_line() -> str:
    from pasta_ray.cli import app

    root: Any = typer.main.get_command(app)
    context = typer.Context(root, info_name="pasta-ray")
    return "# The command line\n\n" + "\n".join(_command(root, context, "pasta-ray"))


def _command(command: Any, context: Any, name: str) -> Iterator[str]:
    yield f"{'##' if name.count(' ') < 1 else '###'} `{name}`\n"
    yield f"{command.help or ''}\n"
    children = getattr(command, "commands", {})
    if not children:
        yield f"```\n{name} {' '.join(command.collect_usage_pieces(context))}\n```\n"
        yield _table(("option", "what it is"), _parameters(command, context))
    for child in children.values():
        yield from _command(child, typer.Context(child, parent=context, info_name=child.name), f"{name} {child.name}")


def _parameters(command: Any, context: Any) -> Table:
    """The records that ``--help`` prints."""
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    return [(f"`{option}`", text) for option, text in filter(None, records)]


def options() -> str:
    from pasta_ray.eval.plan import EvalPlan, QualityPlan, System
    from pasta_ray.serve.config import ServeConfig, ServedModel
    from pasta_ray.train.config import PreferConfig, SftConfig
    from pasta_ray.train.pipeline import PipelineConfig

    parts: dict[str, tuple[str, type[BaseModel]]] = {
        "The service": ("`pasta-ray serve --config FILE`; see [configuration](../configuration.md)", ServeConfig),
        "A served model": ("a value of `models` of the service", ServedModel),
        "Stage 1": ("`pasta-ray train sft --config FILE`; see [training](../training.md)", SftConfig),
        "Stage 2": ("`pasta-ray train prefer --config FILE`; see [training](../training.md)", PreferConfig),
        "A pipeline": (
            "`pasta-ray train pipeline --config FILE`; see [training](../training.md#all-of-it)",
            PipelineConfig,
        ),
        "An evaluation": ("`pasta-ray eval run --config FILE`; see [evaluation](../evaluation.md)", EvalPlan),
        "A system": ("an item of `systems` of an evaluation", System),
        "Quality": ("`quality` of an evaluation", QualityPlan),
    }
    sections = [f"## {title}\n\n{where}\n\n{_fields(model)}" for title, (where, model) in parts.items()]
    return "# All options\n\nEvery field of every YAML file.\n\n" + "\n".join(sections)


def _fields(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    rows = [
        (f"`{name}`", _type(field, schema.get("$defs", {})), _default(field, name in schema.get("required", ())),
         field.get("description", ""))
        for name, field in schema["properties"].items()
    ]  # fmt: skip
    return _table(("field", "type", "default", "what it is"), rows)


def _type(field: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """A JSON schema's type in a few words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(choice, named) for choice in field["anyOf"]))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return _type(named[name], named) if "enum" in named[name] else name
    if field.get("type") == "array":
        return f"list of {_type(field['items'], named)}" if "items" in field else "list"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"map to {_type(values, named)}" if isinstance(values, dict) else "map"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[bound]:g}" for bound, sign in bounds.items() if bound in field]
    return ", ".join([str(field.get("type", "any")), *limits])


def _default(field: Mapping[str, Any], required: bool) -> str:
    if required:
        return "**needed**"
    default = field.get("default")
    return "" if default in ([], {}, "") else f"`{'null' if default is None else str(default)}`"


def _table(head: tuple[str, ...], rows: Table) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
