"""Replicas that share, in one process: announcements, fetched prefixes, and bodies that come home."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.actors.announcements import Announcement, Holder, Peer, Reply
from pasta_ray.actors.costs import TransferCost
from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.directory import Directory
from pasta_ray.actors.farming import Farmer
from pasta_ray.actors.messages import DecoderLike, ReplicaDiedError
from pasta_ray.actors.neighbours import Neighbours, Parts
from pasta_ray.actors.prefixes import PrefixFetcher
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.messages import BodyRequest, Events, Finished, Report, Request
from tests.engine.conftest import prompt
from tests.engine.events import answer
from tests.engine.test_methods import make_decoder, request
from tests.narrow import MakeNarrowDecoder

DEAR = ((1, 0.01), (16, 0.16))


class OneDirectory:
    """A directory within reach, unless it is away."""

    def __init__(self) -> None:
        self.directory = Directory()
        self.is_away = False

    async def announce(self, news: Announcement) -> Reply:
        if self.is_away:
            raise ReplicaDiedError("the directory is gone")
        return self.directory.announce(news)

    async def find(self, asker: str, names: Sequence[bytes]) -> Holder | None:
        return self.directory.find(asker, names)

    async def forget(self, replica: str, incarnation: str) -> None:
        self.directory.forget(replica, incarnation)


class Site:
    """A replica, which is its own handle. ``dies_after`` so many messages of a body it is gone."""

    def __init__(self, name: str, folder: Path, directory: OneDirectory, cost: TransferCost) -> None:
        self.loop = DecodeLoop(MakeNarrowDecoder(folder, points=DEAR), name)
        self.parts = self.loop.call(lambda decoder: Parts(decoder.parts)).result()
        self.neighbours = Neighbours(name, self, self.loop, directory)
        self.prefixes = PrefixFetcher(self.parts, self.loop, self.neighbours, self, cost)
        self.farmer = Farmer("remote", self.parts, self.loop, self.neighbours, self, cost, asyncio.get_running_loop())
        self.dies_after: int | None = None
        for part in self.parts.by_model.values():
            part.starter.farm = self.farmer

    async def take_prefix(self, peer: Peer, key: str, ids: Sequence[int], start: int) -> KVBlock | None:
        site: Site = peer.actor
        if site.dies_after is not None:
            raise ReplicaDiedError(f"{peer.name} is gone")
        part = site.parts.holding(key)
        assert part is not None
        return await asyncio.wrap_future(site.loop.call(lambda _: part.store.take(ids, start)))

    async def decode_body(self, peer: Peer, body: BodyRequest, home: str) -> AsyncGenerator[Events, None]:
        site: Site = peer.actor
        await site.prefixes.fetch(body.model, body.context.prompt_ids, home)
        num_messages = 0
        async with aclosing(site.loop.decode(body)) as messages:
            async for message in messages:
                if num_messages == site.dies_after:
                    raise ReplicaDiedError(f"{peer.name} is gone")
                num_messages += 1
                yield message

    async def answer(self, asked: Request) -> Report:
        await self.prefixes.fetch("", asked.prompt_ids)
        async for message in self.loop.decode(asked):
            last = message.events[-1]
        assert isinstance(last, Finished)
        return last.report


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return make_decoder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(alone: Decoder) -> Callable[..., Any]:
    """Run a scenario with two sites and their directory."""

    def run(scenario: Callable[[Site, Site, OneDirectory], Coroutine[Any, Any, Any]], **cost: float) -> Any:
        async def inside() -> Any:
            directory = OneDirectory()
            folder = Path(alone.engine.config.model)
            sites = [Site(name, folder, directory, TransferCost(**cost)) for name in ("r0", "r1")]
            for site in (*sites, *sites):
                await site.neighbours.announce()
            try:
                return await scenario(sites[0], sites[1], directory)
            finally:
                for site in sites:
                    num_slots = await asyncio.wrap_future(site.loop.call(_num_slots))
                    site.loop.stop()
                    assert num_slots == 0

        return asyncio.run(inside())

    return run


def _num_slots(decoder: DecoderLike) -> int:
    return decoder.num_slots


def ask(number: int, *behind: int) -> Request:
    return Request(f"r{number}", (*prompt(1, 200), *behind), "sequential", max_tokens=5)


def test_a_prefix_is_fetched_if_that_is_cheaper(alone: Decoder, run: Callable[..., Any]) -> None:
    async def scenario(first: Site, second: Site, _: OneDirectory) -> tuple[int, int, str]:
        await first.answer(ask(0, 5))
        await first.neighbours.announce()
        text = (await second.answer(ask(1, 6))).text
        counts = second.prefixes.counts
        return counts.num_tokens, counts.num_declined, text

    expected = answer(alone, ask(1, 6)).text
    assert run(scenario) == (192, 0, expected)
    assert run(scenario, fixed_s=1000.0) == (0, 1, expected)


def test_a_holder_that_is_gone_costs_a_prefill(alone: Decoder, run: Callable[..., Any]) -> None:
    """Guards requests against the death of others: what cannot be fetched is computed, and nobody asks there again."""

    async def scenario(first: Site, second: Site, directory: OneDirectory) -> str:
        await first.answer(ask(0, 5))
        await first.neighbours.announce()
        first.dies_after = 0
        text = (await second.answer(ask(1, 6))).text
        assert (second.prefixes.counts.num_failed, second.prefixes.counts.num_fetches) == (1, 0)
        assert (second.neighbours.peers, directory.directory.num_names) == ({}, 0)
        return text

    assert run(scenario) == answer(alone, ask(1, 6)).text


def test_a_directory_that_was_away_is_told_everything(run: Callable[..., Any]) -> None:
    async def scenario(first: Site, second: Site, directory: OneDirectory) -> None:
        await first.answer(ask(0, 5))
        await first.neighbours.announce()
        num_names = directory.directory.num_names
        assert num_names >= 6
        directory.directory, directory.is_away = Directory(), True
        with pytest.raises(ReplicaDiedError):
            await first.neighbours.announce()
        directory.is_away = False
        for site in (first, second, first):
            await site.neighbours.announce()
        assert directory.directory.num_names == num_names
        assert set(first.neighbours.peers) == {"r1"}

    run(scenario)


@pytest.mark.parametrize("dies_after", [None, 0, 3])
def test_bodies_come_home_whatever_happens_to_them(
    alone: Decoder, run: Callable[..., Any], dies_after: int | None
) -> None:
    """Guards answers whose bodies are decoded elsewhere, where that goes well, refuses at once, or dies on the way."""
    requests = [request(number, max_tokens=1000) for number in range(5)]

    async def scenario(first: Site, second: Site, _: OneDirectory) -> tuple[list[str], int, int]:
        second.dies_after = dies_after
        reports = await asyncio.gather(*(first.answer(each) for each in requests))
        return [each.document for each in reports], first.farmer.counts.num_sent, first.farmer.counts.num_lost

    expected = [answer(alone, each) for each in requests]
    documents, num_sent, num_lost = run(scenario)
    assert documents == [each.document for each in expected]
    assert num_sent > 5
    assert (num_lost == 0) == (dies_after is None)
