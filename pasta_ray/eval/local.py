"""Answers from engines in this process. Systems that share model and adapter share an engine."""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from pasta_ray.engine import Engine
from pasta_ray.engine.config import DraftConfig, EngineConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Finished, Report, Request, Sampling
from pasta_ray.engine.methods import check_method
from pasta_ray.errors import InputError, ReplicaError
from pasta_ray.eval.plan import EvalPlan
from pasta_ray.eval.run import Task


class LocalAnswerer:
    """Loads all systems of the plan, so that one that cannot run is known before any has answered. Raises InputError
    that names the system, and ModelError."""

    def __init__(self, plan: EvalPlan) -> None:
        engines: dict[EngineConfig, Engine] = {}
        decoders: dict[tuple[EngineConfig, DraftConfig], Decoder] = {}
        self._decoders: dict[str, Decoder] = {}
        for system in plan.systems:
            if system.base_url:
                continue
            config, draft = plan.engine(system), plan.draft(system)
            if config not in engines:
                engines[config] = Engine(config)
            try:
                check_method(system.method, engines[config].tags)
            except InputError as error:
                raise InputError(f"system {system.name!r}: {error}") from error
            if (config, draft) not in decoders:
                decoders[config, draft] = Decoder(engines[config], draft=draft)
            self._decoders[system.name] = decoders[config, draft]

    @property
    def num_slots(self) -> int:
        """KV slots in use; none between two answers."""
        return sum(decoder.num_slots for decoder in self._decoders.values())

    def answer(self, task: Task, sampling: Sampling, max_tokens: int) -> Report:
        decoder = self._decoders[task.system.name]
        decoder.submit(self._request(task, sampling, max_tokens))
        while decoder.busy:
            for report in _finished(decoder):
                return report
        raise ReplicaError(f"{task.id}: the engine ended the answer without a report")

    def answer_crowd(self, tasks: Sequence[tuple[Task, Sampling]], max_tokens: int, concurrency: int) -> list[Report]:
        """See `load.CrowdAnswerer`: their branches share the steps of one engine."""
        waiting, reports = deque(tasks), list[Report]()
        decoder = self._decoders[tasks[0][0].system.name]
        while waiting or decoder.busy:
            while waiting and decoder.num_requests < concurrency:
                task, sampling = waiting.popleft()
                with suppress(InputError):  # refused, as it was when it was asked alone
                    decoder.submit(self._request(task, sampling, max_tokens))
            reports += _finished(decoder)
        return reports

    def _request(self, task: Task, sampling: Sampling, max_tokens: int) -> Request:
        system, messages = task.system, task.prompt.messages
        return Request(
            task.id,
            tuple(self._decoders[system.name].engine.tokenizer.encode_chat(messages)),
            system.method,
            max_tokens,
            system.max_branches,
            sampling=sampling,
            messages=tuple((message["role"], message["content"]) for message in messages),
            router=system.router,
            constrained=system.constrained,
        )


def _finished(decoder: Decoder) -> list[Report]:
    """Reports of the answers that the next step ends."""
    return [event.report for news in decoder.step() for event in news.events if isinstance(event, Finished)]
