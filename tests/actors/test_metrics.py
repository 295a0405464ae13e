"""From statistics to metrics, without Ray: an instrument of the test's own records what Ray's would be told."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

from pasta_ray.actors.messages import CoordinatorStats, ReplicaStats, SharingStats
from pasta_ray.actors.metrics import ANSWER_METRICS, COORDINATOR_METRICS, REPLICA_METRICS, Answer, Metric, Publisher
from pasta_ray.engine.messages import BranchReport, Counters, Parallel, Report, Timing, Usage


class Recorded:
    """What each metric's instrument was told."""

    def __init__(self) -> None:
        self.told: dict[str, list[float]] = defaultdict(list)
        self.labels: list[dict[str, str]] = []

    def make(self, metric: Metric[Any], labels: tuple[str, ...]) -> Any:
        recorded = self

        class Instrument:
            def record(self, value: float, given: dict[str, str]) -> None:
                assert tuple(given) == labels
                recorded.told[metric.name].append(value)
                recorded.labels.append(given)

        return Instrument()


def body(tokens: int, predicted: int | None) -> BranchReport:
    return BranchReport("0.1", "0", "topic", predicted, tokens, 1, 5, 0.0, 0.1, "r0", "stop")


MAIN = BranchReport("0", None, None, None, 30, 1, 30, 0.0, 2.1, "r0", "stop")
REPORT = Report(
    id="a",
    method="pasta",
    text="",
    document="",
    finish_reason="stop",
    usage=Usage(12, 101, 20),
    timing=Timing(2.1, 0.2, 0.1),
    parallel=Parallel(2, 1, 3, 50, 101, 2.02),
    branches=(MAIN, body(33, 40), body(18, None)),
)


def test_an_answers_figures_are_its_reports() -> None:
    recorded = Recorded()
    Publisher(ANSWER_METRICS, ("model",), recorded.make).publish(Answer(REPORT, 0.03), model="m")
    told = recorded.told
    assert (told["pasta_decoded"], told["pasta_promises"], told["pasta_branches"]) == ([1], [2], [3])
    assert (told["pasta_body_tokens_predicted"], told["pasta_body_tokens"]) == ([40], [51])
    assert told["pasta_body_length_ratio"] == [33 / 40]
    assert (told["pasta_completion_tokens"], told["pasta_annotation_tokens"]) == ([101], [20])
    assert (told["pasta_critical_path"], told["pasta_theoretical_speedup"]) == ([50], [2.02])
    assert (told["pasta_decode_seconds"], told["pasta_sequential_seconds"]) == ([2.0], [3.0])
    assert told["pasta_realised_speedup"] == [1.5]
    assert set(told) == {metric.name for metric in ANSWER_METRICS}
    assert recorded.labels[0] == {"model": "m"}


def test_a_speedup_that_nobody_can_know_is_not_told() -> None:
    """Guards against a figure that was made up: before a step of a single row was timed there is none."""
    recorded = Recorded()
    publisher = Publisher(ANSWER_METRICS, (), recorded.make)
    publisher.publish(Answer(REPORT))
    publisher.publish(Answer(replace(REPORT, timing=Timing(0.1, 0.1, 0.1)), 0.03))
    unknown = {"pasta_realised_speedup", "pasta_decode_seconds", "pasta_sequential_seconds"}
    assert not unknown & set(recorded.told)
    assert len(recorded.told["pasta_promises"]) == 2


def test_totals_become_increases_and_a_new_process_begins_anew() -> None:
    """Guards counters against being added up twice, and against a restart that would make them fall."""
    recorded = Recorded()
    publisher = Publisher(REPLICA_METRICS, ("replica",), recorded.make)
    for replica, steps in (("r0", 5), ("r1", 3), ("r0", 5), ("r0", 9), ("r0", 2)):
        publisher.publish(
            ReplicaStats(replica, 0, 0, 0, counters=Counters(num_steps=steps, kv_bytes=7)), replica=replica
        )
    assert recorded.told["pasta_steps"] == [5, 3, 4, 2]
    assert recorded.told["pasta_kv_bytes"] == [7] * 5
    assert "pasta_preemptions" not in recorded.told


def test_every_fact_of_the_statistics_is_published() -> None:
    """Guards a field that is counted and shown nowhere."""
    counters = Counters(*range(101, 101 + len(Counters.__dataclass_fields__)))
    sharing = SharingStats(*range(201, 201 + len(SharingStats.__dataclass_fields__)))
    replica = ReplicaStats("r0", 1, 2, 3, 4, counters, 4.5, 0.25, sharing)
    recorded = Recorded()
    Publisher(REPLICA_METRICS, ("replica",), recorded.make).publish(replica, replica="r0")
    told = {**vars(replica), **vars(counters), **vars(sharing)}
    del told["draining"]  # the coordinator counts those that are, as `num_draining`
    facts = [value for value in told.values() if isinstance(value, int | float)]
    assert sorted(facts) == sorted(value for values in recorded.told.values() for value in values)
    load = CoordinatorStats(*range(1, 1 + len(CoordinatorStats.__dataclass_fields__)))
    recorded = Recorded()
    Publisher(COORDINATOR_METRICS, ("coordinator",), recorded.make).publish(load, coordinator="0")
    assert sorted(vars(load).values()) == sorted(value for values in recorded.told.values() for value in values)
