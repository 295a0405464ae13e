"""Several models behind the face of one decoder."""

import asyncio
from contextlib import aclosing

import pytest

from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.loading import LoadModels
from pasta_ray.actors.models import ModelDecoders
from pasta_ray.engine.messages import Events, Finished, Report, Request
from pasta_ray.errors import InputError, ModelError, NotFoundError
from tests.fakes import FakeDecoder, MakeFakeDecoder, ask


def two() -> tuple[ModelDecoders, FakeDecoder, FakeDecoder]:
    """Models ``a`` and ``b``; a report names the model that wrote it as its replica."""
    a, b = FakeDecoder("a"), FakeDecoder("b")
    return ModelDecoders({"a": a, "b": b}), a, b


def report(messages: list[Events]) -> Report:
    event = messages[-1].events[-1]
    assert isinstance(event, Finished)
    return event.report


def test_a_request_is_answered_by_the_model_that_it_names() -> None:
    async def scenario() -> list[Report]:
        models, _, _ = two()
        loop = DecodeLoop(lambda _: models)

        async def read(request: Request) -> Report:
            return report([message async for message in loop.decode(request)])

        requests = [ask(f"fork number {i}", f"id{i}", model="ab"[i % 2]) for i in range(20)]
        return await asyncio.gather(*map(read, requests))

    reports = asyncio.run(scenario())
    assert [answer.text for answer in reports] == [f"one two three number {i} " for i in range(20)]
    assert [answer.branches[0].replica for answer in reports] == ["a", "b"] * 10


@pytest.mark.parametrize("name", ["", "c"])
def test_a_model_that_is_not_there_is_refused(name: str) -> None:
    """Guards against an answer by some other model."""
    models, _, _ = two()
    with pytest.raises(NotFoundError, match=f"model '{name}' is not in this replica; it holds a, b"):
        models.submit(ask("hello", model=name))
    assert not models.busy


def test_busy_models_take_turns() -> None:
    """Guards against a busy model that keeps the others waiting, and against steps of models that have no work."""
    models, a, b = two()
    for request_id in ("a1", "a2"):
        models.submit(ask("endless", request_id, model="a"))
    assert [{message.request_id for message in models.step()} for _ in range(2)] == [{"a1", "a2"}] * 2
    models.submit(ask("endless", "b1", model="b"))
    turns = [min(message.request_id for message in models.step())[0] for _ in range(6)]
    assert turns in (["a", "b"] * 3, ["b", "a"] * 3)
    assert models.num_requests == a.num_requests + b.num_requests == 3
    assert models.num_branches == a.num_branches + b.num_branches == 3
    assert models.num_slots == a.num_slots + b.num_slots
    assert b.num_slots > 0


def test_cancelling_frees_the_slots_of_the_right_model() -> None:
    """Guards against slots that nobody frees, and against another model's answer that ends with this one."""

    async def scenario() -> None:
        models, a, b = two()
        loop = DecodeLoop(lambda _: models)
        async with aclosing(loop.decode(ask("endless", "kept", model="a"))) as kept:
            await anext(kept)
            async with aclosing(loop.decode(ask("fork endless", "left", model="b"))) as left:
                await anext(left)
                assert b.num_slots > 0
            for _ in range(200):
                if not b.num_slots:
                    break
                await asyncio.sleep(0.01)
            assert (a.cancelled, b.cancelled) == ([], ["left"])
            assert (b.num_slots, b.num_requests, b.num_branches) == (0, 0, 0)
            await anext(kept)

    asyncio.run(scenario())


def test_an_id_in_use_is_refused_whatever_the_model() -> None:
    """Guards the events' way back, which goes by the id alone."""

    async def scenario() -> None:
        loop = DecodeLoop(lambda _: two()[0])
        async with aclosing(loop.decode(ask("endless", "same", model="a"))) as first:
            await anext(first)
            with pytest.raises(InputError, match="already"):
                await anext(loop.decode(ask("hello", "same", model="b")))
            await anext(first)

    asyncio.run(scenario())


def test_a_model_that_cannot_be_loaded_is_named() -> None:
    make = LoadModels({"good": MakeFakeDecoder(), "bad": MakeFakeDecoder(failing=("r1",))})
    make("r0").submit(ask("hello", model="bad"))
    with pytest.raises(ModelError, match="model 'bad' cannot be loaded: no such weights"):
        make("r1")
