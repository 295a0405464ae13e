"""What runs in each actor of the pool: one engine that answers many rows at once, whoever sends them."""

import asyncio
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import ray

from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.loading import TokenizerLike
from pasta_ray.actors.messages import DecoderFactory, StepError
from pasta_ray.actors.metrics import ANSWER_METRICS, REPLICA_METRICS, Answer, Publisher
from pasta_ray.batch.attempts import FatalRowError, Suspicion
from pasta_ray.batch.rows import Defaults, Row, answer_line, make_request
from pasta_ray.engine.messages import Finished, Report, Request
from pasta_ray.errors import InputError, PastaError, ReplicaError

METRICS_MODEL = "batch"
"""The label of a batch's answers where a service's have the model's name."""


@dataclass(frozen=True)
class Job:
    """How the rows are answered, and with what. Called in the workers' processes: the factories."""

    make_decoder: DecoderFactory
    make_tokenizer: Callable[[], TokenizerLike]
    defaults: Defaults


class Worker:
    """A class for Ray Data's asynchronous `map_batches`: its calls run side by side, and their rows share the engine's
    steps. A row that the engine refuses, whose decoding fails, or that kills its process, has that as its answer; an
    engine that is broken, or cannot be made, is an error that travels to the driver as a result: raised here, it would
    arrive as one of Ray Data's."""

    def __init__(self, job: Job, attempts: Any) -> None:
        self._job = job
        self._attempts = attempts
        self._answers = Publisher(ANSWER_METRICS, ("model", "method"))
        self._stats = Publisher(REPLICA_METRICS, ("replica",))

    @cached_property
    def _loop(self) -> DecodeLoop:
        name = f"batch-{ray.get_runtime_context().get_actor_id()[:8]}"  # type: ignore[index]  # an actor has an id
        return DecodeLoop(self._job.make_decoder, name)

    @cached_property
    def _suspicion(self) -> Suspicion:
        return Suspicion(self._attempts)

    @cached_property
    def _tokenizer(self) -> TokenizerLike:
        return self._job.make_tokenizer()

    async def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        try:
            self._loop.check()
            lines = await asyncio.gather(*(self._line(Row(**json.loads(row))) for row in batch["row"]))
        except PastaError as error:
            return {"line": [""], "raised": [pickle.dumps(error)]}
        return {"line": lines, "raised": [b""] * len(lines)}

    async def _line(self, row: Row) -> str:
        try:
            request = make_request(row, self._job.defaults, self._tokenizer)
            async with self._suspicion.attempt(row.number):
                report = await self._answer(request)
        except (InputError, StepError, FatalRowError) as error:
            return answer_line(row, None, error)
        self._measure(report)
        return answer_line(row, report)

    def _measure(self, report: Report) -> None:
        stats = self._loop.stats()
        self._stats.publish(stats, replica=stats.replica)
        self._answers.publish(Answer(report, stats.one_row_step_s), model=METRICS_MODEL, method=report.method)

    async def _answer(self, request: Request) -> Report:
        async with aclosing(self._loop.decode(request)) as messages:
            async for message in messages:
                for event in message.events:
                    if isinstance(event, Finished):
                        return event.report
        raise ReplicaError(f"row {request.id}: the answer ended before its report")


def to_record(row: Row) -> dict[str, Any]:
    """A row as it travels to a worker: one string, so that no column's type depends on what rows hold."""
    return {"row": json.dumps(asdict(row), default=str)}
