"""Which replica answers a request, decided on figures alone."""

import pytest

from pasta_ray.actors.placement import View
from pasta_ray.actors.routing import Router
from pasta_ray.engine.blocks import BLOCK_TOKENS
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.messages import Request

FLAT = StepCurve([(1, 0.02), (16, 0.024), (256, 0.4)])
LONG = tuple(range(1000))
TOKEN_BYTES = 50_000


def ask(prompt: tuple[int, ...] = LONG, max_tokens: int = 1000, model: str = "m") -> Request:
    return Request("a", prompt, "pasta", max_tokens=max_tokens, model=model)


def idle(*names: str) -> list[View]:
    return [View(name, FLAT, 0) for name in names]


def test_a_prompt_goes_where_its_start_went() -> None:
    router = Router()
    assert router.choose(ask(), [View("r0", FLAT, 2), View("r1", FLAT, 0)], TOKEN_BYTES) == "r1"
    assert router.choose(ask((*LONG, 5, 6)), idle("r0", "r1"), TOKEN_BYTES) == "r1"
    assert router.choose(ask((7, *LONG)), idle("r0", "r1"), TOKEN_BYTES) == "r0", "its first block is another"
    assert router.choose(ask(model="other"), idle("r0", "r1"), TOKEN_BYTES) == "r0", "another model's KV"


def test_load_outweighs_a_prefix_that_can_be_fetched() -> None:
    """Guards against one replica that gets everything because everything starts with one system prompt."""
    router = Router()
    router.choose(ask(), idle("r0", "r1"), TOKEN_BYTES)
    busy = [View("r0", FLAT, 16), View("r1", FLAT, 0)]
    assert router.choose(ask(max_tokens=4), busy, TOKEN_BYTES) == "r0", "so short an answer is not worth the KV's way"
    assert router.choose(ask(), busy, TOKEN_BYTES) == "r1"


def test_without_a_prefix_the_sooner_one() -> None:
    slow = StepCurve([(1, 0.2), (16, 0.24)])
    assert Router().choose(ask(), [View("r0", slow, 0), View("r1", FLAT, 8)], TOKEN_BYTES) == "r1"


def test_what_a_dead_replica_had_is_forgotten() -> None:
    router = Router()
    router.choose(ask(), idle("r1"), TOKEN_BYTES)
    router.forget("r1")
    assert router.choose(ask(), idle("r0", "r1"), TOKEN_BYTES) == "r0"


@pytest.mark.parametrize(("max_names", "chosen"), [(1000, "r1"), (10, "r0")])
def test_memory_is_bounded(max_names: int, chosen: str) -> None:
    """Guards a coordinator that runs for months: the oldest blocks are forgotten first."""
    router = Router(max_names)
    first = tuple(range(8 * BLOCK_TOKENS))
    router.choose(ask(first), idle("r1"), TOKEN_BYTES)
    router.choose(ask(tuple(range(9000, 9000 + 8 * BLOCK_TOKENS))), idle("r2"), TOKEN_BYTES)
    assert router.choose(ask(first), idle("r0", "r1"), TOKEN_BYTES) == chosen
