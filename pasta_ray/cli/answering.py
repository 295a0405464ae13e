"""Answers for `generate`, from a decoder in this process or from a cluster: the two look the same from here."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.loading import LoadDecoder, LoadTokenizer, TokenizerLike
from pasta_ray.cli.prompts import Prompt, answer_line
from pasta_ray.engine.config import DraftConfig, EngineConfig
from pasta_ray.engine.messages import Events, Report, Request, Sampling
from pasta_ray.engine.reading import Reader
from pasta_ray.errors import InputError, PastaError, ReplicaError

if TYPE_CHECKING:
    from pasta_ray.actors.cluster import Cluster


class Source(Protocol):
    """Where answers come from."""

    def decode(self, request: Request) -> AsyncGenerator[Events, None]: ...


@dataclass(frozen=True)
class Options:
    """How every prompt of the run is answered."""

    method: str
    max_tokens: int
    max_branches: int
    sampling: Sampling
    draft: DraftConfig
    router: bool = False
    constrained: bool = True

    def request(self, prompt: Prompt, tokenizer: TokenizerLike) -> Request:
        ids = tokenizer.encode_chat([{"role": "user", "content": prompt.instruction}])
        return Request(
            prompt.id,
            tuple(ids),
            self.method,
            self.max_tokens,
            self.max_branches,
            sampling=self.sampling,
            messages=(("user", prompt.instruction),),
            router=self.router,
            constrained=self.constrained,
        )


def answer_one(config: EngineConfig, options: Options, prompt: Prompt, in_process: bool, as_json: bool) -> None:
    """Print the answer's text as it becomes readable, or its report."""

    async def run() -> Report:
        async with _source(config, options.draft, in_process) as (source, tokenizer):
            show = _ignore if as_json else _show
            return await _answer(source, options.request(prompt, tokenizer), show)

    report = asyncio.run(run())
    if as_json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=2))
    else:
        print()


def answer_all(
    config: EngineConfig, options: Options, prompts: Sequence[Prompt], in_process: bool, batch: int, out: Path | None
) -> None:
    """Write one report a line, as answers end, to ``out`` or standard output; ``batch`` prompts at the same time.

    A prompt that is refused stops none of the others: InputError names it at the end.
    """
    refused: list[str] = []

    async def run() -> None:
        async with _source(config, options.draft, in_process) as (source, tokenizer):
            with _lines_to(out) as file, _progress(len(prompts)) as advance:
                waiting = iter(prompts)

                async def worker() -> None:
                    for prompt in waiting:
                        try:
                            report = await _answer(source, options.request(prompt, tokenizer), _ignore)
                        except InputError as error:
                            refused.append(f"prompt {prompt.id!r}: {error}")
                        else:
                            print(answer_line(report), file=file, flush=True)
                        advance()

                async with asyncio.TaskGroup() as group:
                    for _ in range(batch):
                        group.create_task(worker())

    try:
        asyncio.run(run())
    except* PastaError as errors:
        first = errors.exceptions[0]
        raise first from None
    if refused:
        more = f"; and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise InputError(f"{refused[0]}{more}")


async def _answer(source: Source, request: Request, show: Callable[[str], None]) -> Report:
    reader = Reader()
    async with aclosing(source.decode(request)) as messages:
        async for message in messages:
            show(reader.read(message))
    if reader.report is None:
        raise ReplicaError("the answer ended before its report")
    return reader.report


@asynccontextmanager
async def _source(
    config: EngineConfig, draft: DraftConfig, in_process: bool
) -> AsyncIterator[tuple[Source, TokenizerLike]]:
    status = Console(stderr=True).status(f"loading {config.model}")
    if in_process:
        with status:
            loop, tokenizer = DecodeLoop(LoadDecoder(config, draft)), LoadTokenizer(config)()
        yield loop, tokenizer
        return
    with status:
        cluster, tokenizer = await _start(config, draft)
    try:
        yield cluster, tokenizer
    finally:
        await cluster.end()


async def _start(config: EngineConfig, draft: DraftConfig) -> "tuple[Cluster, TokenizerLike]":
    from pasta_ray.actors.cluster import Cluster
    from pasta_ray.actors.messages import ClusterSpec
    from pasta_ray.cli.ray_session import connect

    connect()
    tokenizer = LoadTokenizer(config)()  # which also fetches a model that is not there yet
    cluster = Cluster.start(ClusterSpec(LoadDecoder(config, draft)))
    await cluster.wait_ready()
    return cluster, tokenizer


@contextmanager
def _lines_to(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        file = out.open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("answers", total=total)
        yield lambda: progress.advance(task)


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _ignore(_: str) -> None:
    pass
