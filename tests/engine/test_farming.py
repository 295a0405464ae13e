"""Bodies decoded on another engine, and bodies that wait: the answers are those of one engine without either."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pasta_ray.engine.calibration import calibrate
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import BodyNews, BodyPlan, BodyRequest, Event, Events, Report, Request
from pasta_ray.engine.progress import Progress
from pasta_ray.engine.starter import Starter
from tests.engine.events import report, run, shown
from tests.engine.test_methods import make_decoder, request

NUM_REQUESTS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def home(folder: Path) -> Decoder:
    return make_decoder(folder)


@pytest.fixture(scope="module")
def away(folder: Path) -> Decoder:
    return make_decoder(folder)


@pytest.fixture(scope="module")
def alone(home: Decoder) -> dict[str, Report]:
    """What one engine answers."""
    return {number.id: report(run(home, [number])[number.id]) for number in map(ask, range(NUM_REQUESTS))}


def ask(number: int) -> Request:
    return request(number, max_tokens=1000)


class Field:
    """Another decoder as a farm: everything goes there, and what comes back is handed over after each of its steps.
    ``loses`` says of which bodies no more comes."""

    def __init__(self, home: Decoder, away: Decoder, loses: Callable[[], bool] = lambda: False) -> None:
        self.home, self.away, self.loses = home, away, loses
        self.plans: list[BodyPlan] = []
        self.bodies: dict[str, BodyRequest] = {}
        self.num_lost = 0

    def choose(self, plan: BodyPlan) -> str | None:
        self.plans.append(plan)
        return "away"

    def send(self, replica: str, body: BodyRequest) -> None:
        assert replica == "away"
        self.bodies[body.id] = body
        self.away.submit(body)

    def end(self, request_id: str) -> None:
        for body in [body for body in self.bodies.values() if body.request_id == request_id]:
            self.away.cancel(self.bodies.pop(body.id).id)

    def work(self) -> None:
        """One step there."""
        for message in self.away.step() if self.away.busy else []:
            body = self.bodies[message.request_id]
            for news in message.events:
                assert isinstance(news, BodyNews)
                self.home.receive(body.request_id, body.path, news)
                if news.block is not None:
                    del self.bodies[body.id]
            if body.id in self.bodies and self.loses():
                self.num_lost += 1
                self.away.cancel(self.bodies.pop(body.id).id)
                self.home.receive(body.request_id, body.path, None)

    def answer(self, requests: list[Request]) -> dict[str, list[Event]]:
        for each in requests:
            self.home.submit(each)
        events: dict[str, list[Event]] = {each.id: [] for each in requests}
        while self.home.num_requests:
            assert self.home.busy or self.away.busy, "each waits for the other"
            for message in self.home.step() if self.home.busy else []:
                events[message.request_id] += message.events
            self.work()
        return events


@pytest.fixture
def field(home: Decoder, away: Decoder) -> Iterator[Field]:
    starter, home.starter = home.starter, Starter(home.engine, None)
    farm = Field(home, away)
    home.starter.farm = farm
    yield farm
    assert not farm.bodies
    home.starter = starter
    for decoder in (home, away):
        decoder.engine.check_integrity()
        assert (decoder.num_slots, decoder.num_branches, decoder.num_requests) == (0, 0, 0)


def test_every_body_elsewhere_gives_the_same_answers(field: Field, alone: dict[str, Report]) -> None:
    """Guards what leaves, what comes back, and the events of a request whose bodies are decoded elsewhere."""
    for start in range(0, NUM_REQUESTS, 6):
        for id_, events in field.answer([ask(number) for number in range(start, start + 6)]).items():
            answer = report(events)
            assert answer.document == alone[id_].document
            assert shown(events) == answer.text
            assert answer.usage == alone[id_].usage
            assert answer.parallel.critical_path == alone[id_].parallel.critical_path
            assert {body.replica for body in answer.branches[1:]} <= {"away"}
    assert len(field.plans) > 50
    assert all(plan.num_prompt == len(ask(int(plan.request_id[1:])).prompt_ids) for plan in field.plans)


@pytest.mark.parametrize("num_messages", [3, 15, 30, 60])
def test_an_answer_whose_home_dies_goes_on_whatever_was_away(
    field: Field, alone: dict[str, Report], num_messages: int
) -> None:
    """Guards against bodies that are lost with their home: their tokens so far are part of the answer's progress."""
    num_cut = 0
    for number in range(12):
        asked, begun = ask(number), list[Events]()
        field.home.submit(asked)
        while field.home.num_requests and len(begun) < num_messages:
            begun += field.home.step() if field.home.busy else []
            field.work()
        if not field.home.num_requests:
            continue
        num_cut += 1
        field.home.cancel(asked.id)
        progress = Progress().after(tuple(step for message in begun for step in message.steps))
        rest = field.answer([replace(asked, progress=progress)])[asked.id]
        assert report(rest).document == alone[asked.id].document
        assert shown([event for message in begun for event in message.events] + rest) == alone[asked.id].text
    assert num_cut > 3


def test_a_returning_body_is_not_computed_again(field: Field, alone: dict[str, Report]) -> None:
    """Guards against a join that prefills what came from elsewhere: of each body one token is fed at home, its last."""
    number = max(range(NUM_REQUESTS), key=lambda number: alone[f"r{number}"].parallel.num_promises)
    before = field.home.counters.num_rows
    cached = field.home.engine.num_prefix_hits
    main, *bodies = report(field.answer([ask(number)])[f"r{number}"]).branches
    num_fed = field.home.counters.num_rows - before
    num_cached = field.home.engine.num_prefix_hits - cached
    assert len(bodies) == 5
    last = 1 if main.tokens else 0  # of the main branch is never fed
    assert num_fed <= len(ask(number).prompt_ids) - num_cached + main.tokens - last + len(bodies)


def test_a_lost_body_goes_on_at_home(field: Field, alone: dict[str, Report]) -> None:
    """Guards against text that is written twice or lost when the replica that decodes a body dies."""
    rng = random.Random(1)
    field.loses = lambda: rng.random() < 0.1
    for start in range(0, NUM_REQUESTS, 6):
        for id_, events in field.answer([ask(number) for number in range(start, start + 6)]).items():
            assert report(events).document == alone[id_].document
            assert shown(events) == report(events).text
    assert field.num_lost > 20


def test_both_ends_run_out_of_room(folder: Path) -> None:
    """Guards preemption: what was computed elsewhere comes back into the slab, and answers stay what they are."""
    slots = 300
    bytes_per_slot = make_decoder(folder).engine.pool.bytes_per_slot
    home, away = (make_decoder(folder, max_kv_bytes=slots * bytes_per_slot) for _ in range(2))
    field = Field(home, away)
    home.starter.farm = field
    requests = [request(number, max_tokens=100, max_promises=3) for number in range(12)]
    expected = {each.id: report(run(make_decoder(folder), [each])[each.id]) for each in requests}
    answers = field.answer(requests)
    assert home.engine.num_preemptions > 0
    ended = [id_ for id_ in answers if expected[id_].finish_reason == "stop"]
    assert len(ended) > 3
    for id_ in ended:
        assert report(answers[id_]).document == expected[id_].document


def test_cancelling_frees_both_ends(field: Field) -> None:
    """Guards against bodies that are decoded elsewhere for nobody."""
    for num_steps in range(1, 60, 7):
        for number in range(4):
            field.home.submit(ask(number))
        for _ in range(num_steps):
            if field.home.busy:
                field.home.step()
            field.work()
        for number in range(4):
            field.home.cancel(f"r{number}")
        assert not field.bodies
        assert (field.home.num_slots, field.away.num_slots) == (0, 0)


@pytest.mark.parametrize("max_rows", [1, 4])
def test_bodies_that_wait_give_the_same_answers(home: Decoder, alone: dict[str, Report], max_rows: int) -> None:
    """Guards back-off: in a full replica bodies are decoded in turn, nobody waits for ever, and no answer changes."""
    gate = home.starter.gate
    gate._max_rows, unbounded = (lambda: max_rows), gate._max_rows
    rows: list[int] = []
    try:
        for start in range(0, NUM_REQUESTS, 8):
            requests = [ask(number) for number in range(start, start + 8)]
            for each in requests:
                home.submit(each)
            events: dict[str, list[Event]] = {each.id: [] for each in requests}
            while home.busy:
                before = home.counters.num_rows
                for message in home.step():
                    events[message.request_id] += message.events
                rows.append(home.counters.num_rows - before)
            for id_, own in events.items():
                assert report(own).document == alone[id_].document
    finally:
        gate._max_rows = unbounded
    assert gate.num_delayed > 30
    assert gate.num_waiting == 0
    assert sum(rows) / len(rows) < 14, "most steps have a row a request, and what ends in it"


def test_a_curve_finds_its_rows() -> None:
    """Guards the arithmetic: between points linear, never below nothing, worthwhile until a row costs what it gives."""
    curve = StepCurve([(1, 0.010), (4, 0.013), (16, 0.025), (256, 0.265)])
    assert [curve.seconds(rows) for rows in (1, 2, 10, 16, 512)] == pytest.approx([0.010, 0.011, 0.019, 0.025, 0.521])
    assert curve.prefill_s(512) == pytest.approx(0.530)
    assert curve.worthwhile_rows() == 60, "90 % of 256 / 265 ms is reached where rows / (9 + rows) is 0.869"
    flat = StepCurve([(1, 0.010), (256, 0.010)])
    assert flat.worthwhile_rows() == 231
    steep = StepCurve([(1, 0.010), (2, 0.020), (4, 0.040)])
    assert steep.worthwhile_rows() == 1


def test_a_curve_follows_the_machine() -> None:
    """Guards the correction: where steps take twice as long for a while, so does what is expected of them."""
    curve = StepCurve([(1, 0.010), (4, 0.013), (16, 0.025)])
    for _ in range(60):
        curve.observe(2, 0.022)
    assert curve.seconds(2) == pytest.approx(0.022, rel=0.02)
    assert 0.026 < curve.seconds(16) < 0.052


def test_calibration_leaves_nothing(home: Decoder) -> None:
    """Guards the start of a replica: rising costs are measured on the engine itself, and no slot or prefix stays."""
    before = (home.engine.num_prefix_tokens, home.engine.prefixes.cache.num_bytes)
    curve = calibrate(home.engine)
    assert [rows for rows, _ in curve.points] == [1, 4, 16]
    assert all(seconds > 0 for _, seconds in curve.points)
    assert (home.engine.num_prefix_tokens, home.engine.prefixes.cache.num_bytes) == before
    home.engine.check_integrity()
