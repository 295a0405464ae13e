"""Opening an answer again, as coordinator and reader both do it."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from pasta_ray.actors.messages import ReplicaDiedError
from pasta_ray.actors.recovery import fold, recovered
from pasta_ray.engine.messages import BranchClosed, Events, PromiseOpened, Request, Synced
from pasta_ray.engine.progress import Progress, Sampled, Step
from pasta_ray.errors import InputError, ReplicaError
from tests.fakes import ask


def message(number: int) -> Events:
    return Events("a", (Synced(),), (Step(float(number), (Sampled("0", (number,)),)),))


class Mortal:
    """Gives the messages that a request has not had yet, and dies behind some of them, or instead of any."""

    def __init__(self, *dies_at: int, num_messages: int = 5) -> None:
        self.dies_at = list(dies_at)
        self.num_messages = num_messages
        self.asked: list[Request] = []

    async def __call__(self, request: Request) -> AsyncGenerator[Events, None]:
        self.asked.append(request)
        for number in range(len(request.progress.steps), self.num_messages):
            if self.dies_at and self.dies_at[0] == number:
                self.dies_at.pop(0)
                raise ReplicaDiedError("it is gone")
            yield message(number)


def read(attempt: Mortal, max_deaths: int = 3) -> tuple[list[Events], int]:
    deaths: list[None] = []

    async def scenario() -> list[Events]:
        return [got async for got in recovered(ask("x"), attempt, max_deaths, lambda: deaths.append(None))]

    return asyncio.run(scenario()), len(deaths)


def test_every_message_comes_once_and_in_order() -> None:
    attempt = Mortal(0, 0, 2, 3, 3, 4, 4, 4)
    assert read(attempt) == ([message(number) for number in range(5)], 8)
    assert [len(asked.progress.steps) for asked in attempt.asked] == [0, 0, 0, 2, 3, 3, 4, 4, 4]
    assert attempt.asked[0] == ask("x"), "a first try is no second one"
    elapsed = [asked.progress.elapsed_s for asked in attempt.asked]
    assert elapsed == sorted(elapsed)
    assert elapsed[1] > 0


def test_deaths_in_a_row_are_bounded() -> None:
    with pytest.raises(ReplicaError, match="it is gone; what answered request a died 4 times in a row; try again"):
        read(Mortal(1, 2, 2, 2, 2))


def test_other_errors_are_not_tried_again() -> None:
    async def refuses(request: Request) -> AsyncGenerator[Events, None]:
        yield message(0)
        raise InputError(f"request {request.id} is refused")

    async def scenario() -> None:
        async for _ in recovered(ask("x"), refuses, 3, lambda: None):
            pass

    with pytest.raises(InputError, match="request a is refused"):
        asyncio.run(scenario())


def test_progress_knows_which_bodies_are_open() -> None:
    """Guards the load that a request brings to the replica which goes on with it."""
    progress = Progress()
    for events, open_bodies in (
        ((PromiseOpened("0.1", "0"), PromiseOpened("0.2", "0")), ("0.1", "0.2")),
        ((BranchClosed("0.1", "stop"), PromiseOpened("0.3", "0")), ("0.2", "0.3")),
        ((PromiseOpened("0.4", "0"), BranchClosed("0.4", "stop"), BranchClosed("0.2", "length")), ("0.3",)),
    ):
        progress = fold(progress, Events("a", events))
        assert progress.open_bodies == open_bodies
