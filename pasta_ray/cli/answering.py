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
from pasta_ray.cli.live import LiveAnswer
from pasta_ray.cli.prompts import Prompt, answer_line
from pasta_ray.cli.timeline import timeline
from pasta_ray.engine.config import DraftConfig, EngineConfig
from pasta_ray.engine.messages import Events, Finished, Report, Request, Sampling
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
        return self.chat_request(prompt.id, [("user", prompt.instruction)], tokenizer)

    def chat_request(self, id_: str, messages: Sequence[tuple[str, str]], tokenizer: TokenizerLike) -> Request:
        """The next answer of a conversation, given as (role, content)."""
        ids = tokenizer.encode_chat([{"role": role, "content": content} for role, content in messages])
        return Request(
            id_,
            tuple(ids),
            self.method,
            self.max_tokens,
            self.max_branches,
            sampling=self.sampling,
            messages=tuple(messages),
            router=self.router,
            constrained=self.constrained,
        )


class Shown(Protocol):
    """Where an answer's messages go. ``text`` is what its reader has been shown."""

    text: str

    def see(self, message: Events) -> None: ...


class PlainAnswer:
    """Text in document order as it becomes readable, for files and pipes: no colours, nothing that is drawn again."""

    def __init__(self) -> None:
        self.text = ""
        self._reader = Reader()

    def see(self, message: Events) -> None:
        text = self._reader.read(message)
        self.text += text
        print(text, end="", flush=True)


@contextmanager
def shown(console: Console) -> Iterator[Shown]:
    """One answer on ``console``: live where that is a terminal. Whatever ends it, what follows is on a new line."""
    if console.is_terminal:
        with LiveAnswer(console) as live:
            yield live
        return
    plain, failed = PlainAnswer(), True
    try:
        yield plain
        failed = False
    finally:
        if plain.text or not failed:
            print(flush=True)


def answer_one(config: EngineConfig, options: Options, prompt: Prompt, in_process: bool, as_json: bool) -> None:
    """Print the answer while it is written, or its report; on a terminal a timeline of its branches too."""
    console = Console()

    async def run() -> Report:
        async with source_of(config, options.draft, in_process) as (source, tokenizer):
            request = options.request(prompt, tokenizer)
            if as_json:
                return await take(source.decode(request), _ignore)
            with shown(console) as answer:
                return await take(source.decode(request), answer.see)

    report = asyncio.run(run())
    if as_json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=2))
    elif console.is_terminal:
        console.print()
        console.print(timeline(report))


def answer_all(
    config: EngineConfig, options: Options, prompts: Sequence[Prompt], in_process: bool, batch: int, out: Path | None
) -> None:
    """Write one report a line, as answers end, to ``out`` or standard output; ``batch`` prompts at the same time.

    A prompt that is refused stops none of the others: InputError names it at the end.
    """
    refused: list[str] = []

    async def run() -> None:
        async with source_of(config, options.draft, in_process) as (source, tokenizer):
            with _lines_to(out) as file, _progress(len(prompts)) as advance:
                waiting = iter(prompts)

                async def worker() -> None:
                    for prompt in waiting:
                        try:
                            report = await take(source.decode(options.request(prompt, tokenizer)), _ignore)
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


async def take(stream: AsyncGenerator[Events, None], see: Callable[[Events], None]) -> Report:
    """Hand an answer's messages on as they come; its report."""
    report = None
    async with aclosing(stream) as messages:
        async for message in messages:
            see(message)
            report = next((event.report for event in message.events if isinstance(event, Finished)), report)
    if report is None:
        raise ReplicaError("the answer ended before its report")
    return report


@asynccontextmanager
async def source_of(
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


def _ignore(_: Events) -> None:
    pass
