"""`pasta-ray serve`: Ray, the app on it, and a line that says where it answers."""

import json
import logging
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pasta_ray.errors import InputError, PastaError, ReplicaError

APP_NAME = "pasta-ray"
NO_ADAPTER = "none"
READY_TIMEOUT_S = 600.0


def serve(
    model: Annotated[
        str | None, typer.Option(help="A name, a folder, a .gguf file or a hub id.  [default: smollm2-135m-instruct]")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="A folder, a shipped name, or none.  [default: pasta, with its fast and careful variants]"),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ADAPTER", help="Serve this adapter of the same model too, as NAME; repeatable."),
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="Decode replicas.  [default: 1]")] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Add replicas under load, up to so many.  [default: none are added]")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of HTTP.")] = 8000,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 serves every interface; beyond loopback API keys are needed.")
    ] = "127.0.0.1",
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of every option (see `pasta-ray schema`); options given here go over it."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="auto, none or int8.  [default: auto, which is int8 on a CPU with VNNI]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a replica.")] = None,
    draft_model: Annotated[
        str | None, typer.Option(help="Guesses for speculative methods.  [default: looked up in the text so far]")
    ] = None,
    max_draft: Annotated[int | None, typer.Option(help="Tokens that a branch guesses in a step.  [default: 4]")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The name that clients send.")] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="A key's sha256 a line; PASTA_RAY_API_KEYS may hold keys too.")
    ] = None,
    allow_without_keys: Annotated[
        bool, typer.Option("--allow-without-keys", help="Serve other machines although there are no API keys.")
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster to join; local always starts one.  [default: join or start]")
    ] = None,
) -> None:
    """Serve the OpenAI API until Ctrl-C."""
    from pasta_ray.serve.config import read_config

    given = {
        "model": model,
        "adapter": adapter,
        "replicas": replicas,
        "max_replicas": max_replicas,
        "device": device,
        "dtype": dtype,
        "quantization": quantization,
        "num_threads": threads,
        "draft_model": draft_model,
        "max_draft": max_draft,
        "served_model_name": served_model_name,
        "api_keys_file": api_keys_file,
        "allow_without_keys": allow_without_keys or None,
    }
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if adapter == NO_ADAPTER:
        overrides["adapter"] = None
    settings = read_config(config, overrides, _read_also(also or []), os.environ)
    from pasta_ray.serve.security import check_exposure, read_keys

    check_exposure(host, settings, read_keys(settings.api_keys_file, os.environ))
    _check_port(host, port)

    from pasta_ray.cli.ray_session import connect
    from pasta_ray.serve.app import build_app

    with Console(stderr=True).status(f"reading {settings.model}"):  # perhaps fetching it
        app = build_app(settings)
    connect(ray_address)
    import ray
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    stop = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stop.set())
    try:
        quiet = LoggingConfig(log_level="WARNING")  # of Serve's own parts; the app logs a line a request
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray_serve.start(http_options=HTTPOptions(host=host, port=port, request_timeout_s=None), logging_config=quiet)
        try:
            ray_serve.run(app, name=APP_NAME, route_prefix="/")
        except RuntimeError as error:
            raise ReplicaError(f"the app cannot be deployed: {error}") from error
        url = f"http://{host}:{port}"
        with Console(stderr=True).status("loading the weights"):
            ready = _wait_ready(url, stop)
        if ready:
            first, *others = settings.served
            more = f"; so do {', '.join(others)}" if others else ""
            typer.echo(f"{first} answers at {url}/v1 (Ctrl-C ends){more}; see it at {url}/")
        stop.wait()
    finally:
        typer.echo("stopping", err=True)
        ray_serve.delete(APP_NAME)
        ray.shutdown()


def schema() -> None:
    """Print the JSON Schema of the file that `serve --config` takes."""
    from pasta_ray.serve.config import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))


def _read_also(pairs: Sequence[str]) -> dict[str, str | None]:
    """Adapters by the names to serve them under."""
    adapters: dict[str, str | None] = {}
    for pair in pairs:
        name, _, adapter = pair.partition("=")
        if not name or not adapter or name in adapters:
            raise InputError(f"--also is {pair!r}; allowed: NAME=ADAPTER, each name once")
        adapters[name] = None if adapter == NO_ADAPTER else adapter
    return adapters


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"--host {host} --port {port}: {error.strerror}; choose another port") from error


def _wait_ready(url: str, stop: threading.Event) -> bool:
    """Wait until a replica can decode; False when asked to stop first. Raises what keeps the replicas from starting."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not stop.wait(1.0):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10):
                return True
        except urllib.error.HTTPError as error:
            body = json.loads(error.read())
            if body["error"]["code"] == "failed":
                raise PastaError(body["error"]["message"]) from None
        except (urllib.error.URLError, TimeoutError):
            pass
        if time.monotonic() > deadline:
            raise ReplicaError(f"the service does not answer at {url}; does Serve run in this cluster on another port?")
    return False
