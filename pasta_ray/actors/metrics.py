"""What is measured, by name, and how statistics become metrics of Ray.

Every metric is one line of a table that says where its value stands in a dataclass; a `Publisher` does the rest. Ray's
agent on each node shows them to Prometheus, with ``ray_`` before the name and, for a counter, ``_total`` behind it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from pasta_ray.actors.messages import CoordinatorStats, ReplicaStats
from pasta_ray.engine.messages import BranchReport, Report

Source = TypeVar("Source")
Kind = Literal["gauge", "counter", "tally", "histogram"]
EXPORT_PREFIX = "ray_"
COUNTERS = ("counter", "tally")

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Metric(Generic[Source]):
    """``of`` gives a gauge's value now, a counter's running total, what is added to a tally (a counter too), or
    what a histogram has to observe. None is nothing."""

    name: str
    kind: Kind
    description: str
    of: Callable[[Source], Any]
    boundaries: Sequence[float] = ()

    @property
    def exported(self) -> str:
        """Its name in Prometheus; a histogram's series have ``_bucket``, ``_sum`` and ``_count`` behind it."""
        return f"{EXPORT_PREFIX}{self.name}" + ("_total" if self.kind in COUNTERS else "")


REPLICA_METRICS: tuple[Metric[ReplicaStats], ...] = (
    Metric("pasta_replica_requests", "gauge", "Requests in the replica's batch.", lambda s: s.num_requests),
    Metric("pasta_replica_branches", "gauge", "Live branches of all requests.", lambda s: s.num_branches),
    Metric("pasta_replica_slots", "gauge", "KV slots in use.", lambda s: s.num_slots),
    Metric("pasta_kv_bytes", "gauge", "KV bytes held by requests.", lambda s: s.counters.kv_bytes),
    Metric("pasta_kv_bytes_bound", "gauge", "What these may come to.", lambda s: s.max_kv_bytes),
    Metric("pasta_kv_bytes_per_token", "gauge", "What a token of them takes.", lambda s: s.kv_bytes_per_token),
    Metric("pasta_waiting_requests", "gauge", "Requests that wait for KV room.", lambda s: s.counters.num_waiting),
    Metric("pasta_one_row_step_seconds", "gauge", "Seconds of a step of a single row.", lambda s: s.one_row_step_s),
    Metric("pasta_steps", "counter", "Forward passes.", lambda s: s.counters.num_steps),
    Metric("pasta_step_seconds", "counter", "Seconds spent in steps.", lambda s: s.step_s),
    Metric("pasta_step_rows", "counter", "Tokens fed in steps.", lambda s: s.counters.num_rows),
    Metric("pasta_given_up", "counter", "Requests given up before their end.", lambda s: s.num_cancelled),
    Metric("pasta_preemptions", "counter", "Requests that lost their KV.", lambda s: s.counters.num_preemptions),
    Metric("pasta_prefix_tokens", "counter", "Prompt tokens looked up.", lambda s: s.counters.num_prefix_tokens),
    Metric("pasta_prefix_hits", "counter", "Of these, found in the cache.", lambda s: s.counters.num_prefix_hits),
    Metric("pasta_peers", "gauge", "Replicas that this one shares with.", lambda s: s.sharing.num_peers),
    Metric("pasta_prefix_fetches", "counter", "Prefixes fetched from peers.", lambda s: s.sharing.num_prefix_fetches),
    Metric("pasta_prefix_tokens_fetched", "counter", "Tokens of these.", lambda s: s.sharing.num_prefix_tokens_fetched),
    Metric("pasta_prefix_bytes_fetched", "counter", "KV bytes of these.", lambda s: s.sharing.num_prefix_bytes_fetched),
    Metric(
        "pasta_prefix_fetches_failed", "counter", "Fetches that failed.", lambda s: s.sharing.num_prefix_fetches_failed
    ),
    Metric(
        "pasta_prefix_fetches_declined",
        "counter",
        "Fetches not worth it.",
        lambda s: s.sharing.num_prefix_fetches_declined,
    ),
    Metric("pasta_bodies_sent", "counter", "Bodies sent to peers.", lambda s: s.sharing.num_bodies_sent),
    Metric("pasta_bodies_lost", "counter", "Of these, come home unfinished.", lambda s: s.sharing.num_bodies_lost),
    Metric("pasta_bodies_hosted", "counter", "Bodies decoded for peers.", lambda s: s.sharing.num_bodies_hosted),
    Metric("pasta_bodies_delayed", "counter", "Bodies that waited for a row.", lambda s: s.sharing.num_bodies_delayed),
    Metric(
        "pasta_body_bytes_sent", "counter", "KV bytes that went with bodies.", lambda s: s.sharing.num_body_bytes_sent
    ),
    Metric(
        "pasta_body_bytes_returned", "counter", "KV bytes that came back.", lambda s: s.sharing.num_body_bytes_returned
    ),
)

COORDINATOR_METRICS: tuple[Metric[CoordinatorStats], ...] = (
    Metric("pasta_ready_replicas", "gauge", "Replicas that take requests.", lambda s: s.num_ready),
    Metric("pasta_draining_replicas", "gauge", "Replicas that are to end.", lambda s: s.num_draining),
    Metric("pasta_added_replicas", "counter", "Replicas added for load.", lambda s: s.num_added),
    Metric("pasta_removed_replicas", "counter", "Replicas removed for lack of it.", lambda s: s.num_removed),
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
    def bodies(self) -> list[BranchReport]:
        return [branch for branch in self.report.branches if branch.parent is not None]

    @property
    def decode_s(self) -> float | None:
        """The time that it took without its prefill; None where that cannot be compared with :attr:`sequential_s`."""
        return self.report.timing.wall_s - self.report.timing.prefill_s if self.sequential_s else None

    @property
    def sequential_s(self) -> float | None:
        """The time that its text takes token by token, its first one left out, which is the prefill's."""
        steps = self.report.parallel.sequential_tokens - 1
        measured = self.report.timing.wall_s > self.report.timing.prefill_s
        return self.one_row_step_s * steps if self.one_row_step_s and steps > 0 and measured else None

    @property
    def realised_speedup(self) -> float | None:
        return self.sequential_s / self.decode_s if self.sequential_s and self.decode_s else None

    @property
    def length_ratios(self) -> list[float]:
        """Of its bodies: tokens written for each that was promised."""
        return [body.tokens / body.tokens_predicted for body in self.bodies if body.tokens_predicted]


# Sums are tallies of their own: those of Ray's histograms are made of the middles of their buckets.
ANSWER_METRICS: tuple[Metric[Answer], ...] = (
    Metric("pasta_decoded", "tally", "Answers with a report.", lambda _: 1),
    Metric("pasta_promises", "tally", "Bodies.", lambda a: len(a.bodies)),
    Metric(
        "pasta_body_tokens_predicted",
        "tally",
        "Tokens that bodies were promised to have.",
        lambda a: sum(body.tokens_predicted or 0 for body in a.bodies),
    ),
    Metric("pasta_body_tokens", "tally", "Tokens that bodies have.", lambda a: sum(b.tokens for b in a.bodies)),
    Metric("pasta_prompt_tokens", "tally", "Tokens of prompts.", lambda a: a.report.usage.prompt_tokens),
    Metric("pasta_completion_tokens", "tally", "Visible tokens.", lambda a: a.report.usage.completion_tokens),
    Metric("pasta_annotation_tokens", "tally", "Tokens of tags.", lambda a: a.report.usage.annotation_tokens),
    Metric("pasta_critical_path", "tally", "Steps in a row.", lambda a: a.report.parallel.critical_path),
    Metric(
        "pasta_sequential_tokens",
        "tally",
        "Steps that the texts take token by token.",
        lambda a: a.report.parallel.sequential_tokens,
    ),
    Metric("pasta_decode_seconds", "tally", "Time of answers without prefill.", lambda a: a.decode_s),
    Metric(
        "pasta_sequential_seconds",
        "tally",
        "Time of the same texts token by token, by the latest one-row steps.",
        lambda a: a.sequential_s,
    ),
    Metric("pasta_branches", "histogram", "Branches at once.", lambda a: a.report.parallel.max_branches, COUNTS),
    Metric(
        "pasta_body_length_ratio",
        "histogram",
        "A body's tokens over those promised.",
        lambda a: a.length_ratios,
        RATIOS,
    ),
    Metric(
        "pasta_theoretical_speedup",
        "histogram",
        "Sequential tokens over critical path.",
        lambda a: a.report.parallel.theoretical_speedup,
        RATIOS,
    ),
    Metric(
        "pasta_realised_speedup",
        "histogram",
        "Sequential seconds over decode seconds.",
        lambda a: a.realised_speedup,
        RATIOS,
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
                if recorded or metric.kind not in COUNTERS:
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
            case "counter" | "tally":
                self._record = metrics.Counter(metric.name, metric.description, labels).inc
            case "histogram":
                boundaries = list(map(float, metric.boundaries))
                self._record = metrics.Histogram(metric.name, metric.description, boundaries, labels).observe

    def record(self, value: float, labels: dict[str, str]) -> None:
        self._record(value, tags=labels)
