"""The command line. Commands import torch and ray when they run, so that `--help` and `parse` answer at once."""

import sys
from collections.abc import Sequence

import typer

from pasta_ray.cli.annotate import annotate
from pasta_ray.cli.batch import batch
from pasta_ray.cli.bench import bench_app
from pasta_ray.cli.chat import chat
from pasta_ray.cli.doctor import doctor
from pasta_ray.cli.evaluating import eval_app
from pasta_ray.cli.generate import generate
from pasta_ray.cli.parse import parse
from pasta_ray.cli.serve import schema, serve
from pasta_ray.cli.train import train_app
from pasta_ray.errors import ModelError, PastaError

app = typer.Typer(
    name="pasta-ray",
    help="Answers decoded in parallel: serve, generate, and teach models to annotate their own answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(schema)
app.command()(generate)
app.command()(batch)
app.command()(chat)
app.command()(parse)
app.command()(annotate)
app.command()(doctor)
app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")
app.add_typer(bench_app, name="bench")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line. An error that the user can mend is one line; exit 2 for bad input, 1 for the rest. A model
    or adapter that cannot be loaded is bad input here: an option names it."""
    try:
        app(args=None if args is None else list(args))
    except PastaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if error.http_status < 500 or isinstance(error, ModelError) else 1)
