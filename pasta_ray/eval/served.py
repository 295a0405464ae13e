"""Answers from an OpenAI-compatible endpoint, timed where the reader sits: network and server are in the seconds.

`pasta-ray serve` sends its report along. Of a server of another make only text, usage and clock are known, and it is
taken to decode one token after the other.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pasta_ray.engine.messages import BranchReport, FinishReason, Parallel, Report, Sampling, Timing, Usage
from pasta_ray.errors import InputError
from pasta_ray.eval.local import LocalAnswerer
from pasta_ray.eval.plan import EvalPlan, System
from pasta_ray.eval.run import Task
from pasta_ray.train.endpoint import EXCERPT, NO_KEY, STATUS, UNREACHABLE, EndpointConfig, EndpointError
from pasta_ray.train.jsonl import explain

TIMEOUT_S = 600.0
REFUSALS = (400, 413, 422)  # the prompt's fault: other prompts may be answered
REPORT = TypeAdapter(Report)


class ServedAnswerer:
    """Raises InputError at once where a key is missing. No request is tried twice: a second try would be in the time.
    Where nobody answers the run ends, with what it has, and goes on when it is started again."""

    def __init__(self, plan: EvalPlan) -> None:
        self._clients = {system.name: _client(system) for system in plan.systems if system.base_url}

    def answer(self, task: Task, sampling: Sampling, max_tokens: int) -> Report:
        import openai

        client, system = self._clients[task.system.name], task.system
        settings: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.temperature:
            settings["seed"] = sampling.seed
        if system.own_server:
            options = {"method": system.method, "max_branches": system.max_branches, "router": system.router}
            settings["extra_body"] = {"pasta": options}
        heard = _Heard(time.perf_counter())
        try:
            with client.chat.completions.create(
                model=system.model,
                messages=task.prompt.messages,
                max_tokens=max_tokens,
                stream=True,
                stream_options={"include_usage": True},
                **settings,
            ) as chunks:
                for chunk in chunks:
                    heard.take(chunk)
        except openai.APIStatusError as error:
            what = error.response.text[:EXCERPT]
            if error.status_code in REFUSALS:
                raise InputError(what) from error
            raise EndpointError(f"{STATUS} {error.status_code}", what) from error
        except openai.APITimeoutError as error:
            raise EndpointError("the endpoint timed out", f"no end of an answer within {TIMEOUT_S:g} s") from error
        except openai.APIConnectionError as error:
            raise EndpointError(UNREACHABLE, f"{system.base_url}: {error.__cause__ or error}") from error
        except openai.APIError as error:
            raise EndpointError("the endpoint broke an answer off", str(error)) from error
        return heard.report(task, system.method)

    def answer_crowd(self, tasks: Sequence[tuple[Task, Sampling]], max_tokens: int, concurrency: int) -> list[Report]:
        """See `load.CrowdAnswerer`: so many connections at once."""

        def ask(question: tuple[Task, Sampling]) -> Report | None:
            with suppress(InputError):  # refused, as it was when it was asked alone
                return self.answer(*question, max_tokens)
            return None

        with ThreadPoolExecutor(concurrency) as pool:
            return [report for report in pool.map(ask, tasks) if report]


@dataclass
class _Heard:
    """What a stream has brought, and when."""

    start_s: float
    pieces: list[str] = field(default_factory=list)
    ttft_s: float | None = None
    wall_s: float = 0.0
    finish_reason: FinishReason | None = None
    usage: Any = None
    sent: dict[str, Any] | None = None

    def take(self, chunk: Any) -> None:
        now = time.perf_counter() - self.start_s
        self.usage = chunk.usage or self.usage
        self.sent = (chunk.model_extra or {}).get("pasta") or self.sent
        for choice in chunk.choices:
            if choice.delta.content:
                self.ttft_s = self.ttft_s or now
                self.pieces.append(choice.delta.content)
            if choice.finish_reason:
                self.finish_reason = "stop" if choice.finish_reason == "stop" else "length"
                self.wall_s = now

    def report(self, task: Task, method: str) -> Report:
        """Raises EndpointError for a stream that ended in the middle, or whose report cannot be read."""
        if self.finish_reason is None:
            raise EndpointError("the endpoint broke an answer off", f"{task.id}: no reason for the end")
        ttft_s = self.ttft_s or self.wall_s
        if self.sent is not None:
            try:
                sent = REPORT.validate_python(self.sent)
            except ValidationError as error:
                raise EndpointError("the endpoint's report cannot be read", explain(error)) from error
            return replace(sent, id=task.id, timing=Timing(self.wall_s, ttft_s, sent.timing.prefill_s))
        return self._sequential(task, method, ttft_s)

    def _sequential(self, task: Task, method: str, ttft_s: float) -> Report:
        if self.usage is None:
            raise EndpointError("the endpoint counts no tokens", "its streams have no usage")
        assert self.finish_reason
        text, tokens = "".join(self.pieces), max(1, int(self.usage.completion_tokens))
        return Report(
            id=task.id,
            method=method,
            text=text,
            document=text,
            finish_reason=self.finish_reason,
            usage=Usage(int(self.usage.prompt_tokens), tokens, 0),
            timing=Timing(self.wall_s, ttft_s, ttft_s),
            parallel=Parallel(0, 0, 1, tokens, tokens, 1.0),
            branches=(
                BranchReport(
                    "0", None, None, None, tokens, 1, tokens, 0.0, self.wall_s, task.system.name, self.finish_reason
                ),
            ),
        )


@dataclass(frozen=True)
class Everywhere:
    """Each system where its plan has it: on an engine here, or behind an endpoint."""

    here: LocalAnswerer
    there: ServedAnswerer

    @classmethod
    def of(cls, plan: EvalPlan) -> "Everywhere":
        return cls(LocalAnswerer(plan), ServedAnswerer(plan))

    def answer(self, task: Task, sampling: Sampling, max_tokens: int) -> Report:
        place = self.there if task.system.base_url else self.here
        return place.answer(task, sampling, max_tokens)

    def answer_crowd(self, tasks: Sequence[tuple[Task, Sampling]], max_tokens: int, concurrency: int) -> list[Report]:
        place = self.there if tasks[0][0].system.base_url else self.here
        return place.answer_crowd(tasks, max_tokens, concurrency)


def _client(system: System) -> Any:
    try:
        import openai
    except ModuleNotFoundError as error:
        raise InputError("endpoints are asked through the package `openai`: pip install 'pasta-ray[eval]'") from error
    assert system.base_url
    config = EndpointConfig(system.base_url, system.model, api_key_env=system.api_key_env)
    key = config.api_key() if system.api_key_env else NO_KEY
    return openai.OpenAI(base_url=config.base_url, api_key=key, max_retries=0, timeout=TIMEOUT_S)
