"""What is measured, by name, and how statistics become metrics of Ray.

Every metric is one line of a table that says where its value stands in a dataclass; a `Publisher` does the rest. Ray's
agent on each node shows them to Prometheus, with ``ray_`` before the name and, for a counter, ``_total`` behind it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from pasta_ray.actors.messages import CoordinatorStats, ReplicaStats
from pasta_ray.engine.messages import Report

Source = TypeVar("Source")
Kind = Literal["gauge", "counter", "histogram"]
EXPORT_PREFIX = "ray_"

TOKENS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
BODY_TOKENS = (10, 20, 30, 40, 60, 80, 120, 160, 240, 320)
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SPEEDUPS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Metric(Generic[Source]):
    """``of`` gives a gauge's value now, a counter's running total, or what a histogram has to observe."""

    name: str
    kind: Kind
    description: str
    of: Callable[[Source], Any]
    boundaries: Sequence[float] = ()

    @property
    def exported(self) -> str:
        """Its name in Prometheus; a histogram's series have ``_bucket``, ``_sum`` and ``_count`` behind it."""
        return f"{EXPORT_PREFIX}{self.name}" + ("_total" if self.kind == "counter" else "")


REPLICA_METRICS: tuple[Metric[ReplicaStats], ...] = (
    Metric("pasta_replica_requests", "gauge", "Requests in the replica's batch.", lambda s: s.num_requests),
    Metric("pasta_replica_branches", "gauge", "Live branches of all requests.", lambda s: s.num_branches),
    Metric("pasta_replica_slots", "gauge", "KV slots in use.", lambda s: s.num_slots),
    Metric("pasta_kv_bytes", "gauge", "KV bytes held by requests.", lambda s: s.counters.kv_bytes),
    Metric("pasta_waiting_requests", "gauge", "Requests that wait for KV room.", lambda s: s.counters.num_waiting),
    Metric("pasta_one_row_step_seconds", "gauge", "Seconds of a step of a single row.", lambda s: s.one_row_step_s),
    Metric("pasta_steps", "counter", "Forward passes.", lambda s: s.counters.num_steps),
    Metric("pasta_step_seconds", "counter", "Seconds spent in steps.", lambda s: s.step_s),
    Metric("pasta_step_rows", "counter", "Tokens fed in steps.", lambda s: s.counters.num_rows),
    Metric("pasta_given_up", "counter", "Requests given up before their end.", lambda s: s.num_cancelled),
    Metric("pasta_preemptions", "counter", "Requests that lost their KV.", lambda s: s.counters.num_preemptions),
    Metric("pasta_prefix_tokens", "counter", "Prompt tokens looked up.", lambda s: s.counters.num_prefix_tokens),
    Metric("pasta_prefix_hits", "counter", "Of these, found in the cache.", lambda s: s.counters.num_prefix_hits),
)

COORDINATOR_METRICS: tuple[Metric[CoordinatorStats], ...] = (
    Metric("pasta_ready_replicas", "gauge", "Replicas that can decode.", lambda s: s.num_ready),
    Metric("pasta_ongoing_requests", "gauge", "Requests being decoded.", lambda s: s.num_ongoing),
    Metric("pasta_queued_requests", "gauge", "Requests that wait for their turn.", lambda s: s.num_queued),
    Metric("pasta_rejected", "counter", "Requests refused because the queue is full.", lambda s: s.num_rejected),
    Metric("pasta_requests", "counter", "Requests that came.", lambda s: s.num_requests),
    Metric("pasta_finished", "counter", "Requests that ended with their report.", lambda s: s.num_finished),
    Metric("pasta_cancelled", "counter", "Requests whose reader left.", lambda s: s.num_cancelled),
    Metric("pasta_recoveries", "counter", "Requests that went on elsewhere.", lambda s: s.num_recoveries),
)


@dataclass(frozen=True)
class Answer:
    """A finished answer, and the seconds that a step of a single row takes on the replica of its main branch."""

    report: Report
    one_row_step_s: float | None = None

    @property
    def realised_speedup(self) -> float | None:
        """The time that its text takes token by token, over the time that it took; None where either is unknown.

        Prefill is left out of both.
        """
        timing, tokens = self.report.timing, self.report.parallel.sequential_tokens
        decode_s = timing.wall_s - timing.prefill_s
        if not self.one_row_step_s or decode_s <= 0 or tokens < 2:
            return None
        return self.one_row_step_s * (tokens - 1) / decode_s  # the first token is the prefill's


def _bodies(answer: Answer) -> list[Any]:
    return [branch for branch in answer.report.branches if branch.parent is not None]


ANSWER_METRICS: tuple[Metric[Answer], ...] = (
    Metric("pasta_promises", "histogram", "Bodies of an answer.", lambda a: a.report.parallel.num_promises, COUNTS),
    Metric(
        "pasta_branches", "histogram", "Branches at once, at most.", lambda a: a.report.parallel.max_branches, COUNTS
    ),
    Metric(
        "pasta_body_tokens_predicted",
        "histogram",
        "Length that a body was promised to have.",
        lambda a: [body.tokens_predicted for body in _bodies(a) if body.tokens_predicted is not None],
        BODY_TOKENS,
    ),
    Metric(
        "pasta_body_tokens", "histogram", "Length of a body.", lambda a: [b.tokens for b in _bodies(a)], BODY_TOKENS
    ),
    Metric("pasta_prompt_tokens", "histogram", "Tokens of a prompt.", lambda a: a.report.usage.prompt_tokens, TOKENS),
    Metric(
        "pasta_completion_tokens",
        "histogram",
        "Visible tokens of an answer.",
        lambda a: a.report.usage.completion_tokens,
        TOKENS,
    ),
    Metric(
        "pasta_annotation_tokens",
        "histogram",
        "Tokens of an answer's tags.",
        lambda a: a.report.usage.annotation_tokens,
        TOKENS,
    ),
    Metric(
        "pasta_critical_path",
        "histogram",
        "Steps that had to follow one another.",
        lambda a: a.report.parallel.critical_path,
        TOKENS,
    ),
    Metric(
        "pasta_theoretical_speedup",
        "histogram",
        "Sequential tokens over critical path.",
        lambda a: a.report.parallel.theoretical_speedup,
        SPEEDUPS,
    ),
    Metric(
        "pasta_realised_speedup",
        "histogram",
        "Time of the text token by token, by the latest one-row steps, over the time it took.",
        lambda a: a.realised_speedup,
        SPEEDUPS,
    ),
)


class Instrument(Protocol):
    """One of Ray's, or a test's: ``record`` sets, adds or observes."""

    def record(self, value: float, labels: dict[str, str]) -> None: ...


class Publisher(Generic[Source]):
    """Keeps the metrics of a table up to what statistics say. ``labels`` are the names of their labels."""

    def __init__(
        self,
        table: Sequence[Metric[Source]],
        labels: Sequence[str] = (),
        make: "Callable[[Metric[Source], tuple[str, ...]], Instrument] | None" = None,
    ) -> None:
        make = make or _RayInstrument
        self._instruments = [(metric, make(metric, tuple(labels))) for metric in table]
        self._totals: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def publish(self, source: Source, **labels: str) -> None:
        for metric, instrument in self._instruments:
            for value in _values(metric.of(source)):
                recorded = self._increase(metric, value, labels) if metric.kind == "counter" else value
                if recorded or metric.kind != "counter":
                    instrument.record(float(recorded), labels)

    def _increase(self, metric: Metric[Source], total: float, labels: Mapping[str, str]) -> float:
        """What the total has grown by; one that fell is of a process that began anew."""
        key = (metric.name, frozenset(labels.items()))
        before = self._totals.get(key, 0)
        self._totals[key] = total
        return total - before if total >= before else total


def _values(found: Any) -> Iterable[float]:
    if found is None:
        return ()
    return found if isinstance(found, list) else (found,)


class _RayInstrument:
    def __init__(self, metric: Metric[Any], labels: tuple[str, ...]) -> None:
        from ray.util import metrics

        match metric.kind:
            case "gauge":
                self._record: Callable[..., None] = metrics.Gauge(metric.name, metric.description, labels).set
            case "counter":
                self._record = metrics.Counter(metric.name, metric.description, labels).inc
            case "histogram":
                boundaries = list(map(float, metric.boundaries))
                self._record = metrics.Histogram(metric.name, metric.description, boundaries, labels).observe

    def record(self, value: float, labels: dict[str, str]) -> None:
        self._record(value, tags=labels)
