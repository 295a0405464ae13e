"""What the service measures of its clients' side, and the page that shows all metrics of the cluster."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from pasta_ray.actors.metrics import EXPORT_PREFIX, Metric, Publisher

SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0)
TOKEN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
AGENT_TIMEOUT_S = 5.0
OURS = f"{EXPORT_PREFIX}pasta_"


@dataclass(frozen=True)
class Served:
    """One choice as its client met it: the seconds until it was readable and until its end, waiting included."""

    ttft_s: float | None
    wall_s: float
    num_tokens: int

    @property
    def token_s(self) -> float | None:
        """Seconds a visible token after the first; None for an answer of fewer than two."""
        return (
            None if self.ttft_s is None or self.num_tokens < 2 else (self.wall_s - self.ttft_s) / (self.num_tokens - 1)
        )


SERVED: tuple[Metric[Served], ...] = (
    Metric("pasta_ttft_seconds", "histogram", "Seconds to the first visible text.", lambda s: s.ttft_s, SECONDS),
    Metric("pasta_token_seconds", "histogram", "Seconds a visible token after it.", lambda s: s.token_s, TOKEN_SECONDS),
    Metric("pasta_answer_seconds", "histogram", "Seconds to the end of an answer.", lambda s: s.wall_s, SECONDS),
)
ENDED: tuple[Metric[int], ...] = (Metric("pasta_answers", "counter", "Choices, by how they ended.", lambda n: n),)
RESPONSES: tuple[Metric[int], ...] = (Metric("pasta_responses", "counter", "HTTP responses by status.", lambda n: n),)


class Meter(Protocol):
    """Told of every response and every choice."""

    def response(self, path: str, status: int) -> None: ...
    def answer(self, model: str, method: str, outcome: str, served: Served) -> None: ...


class NoMeter:
    """Where nobody measures."""

    def response(self, path: str, status: int) -> None: ...
    def answer(self, model: str, method: str, outcome: str, served: Served) -> None: ...


class RayMeter:
    """Into Ray's metrics. ``outcome`` is a finish reason, ``left`` where the reader did, or an error's class."""

    def __init__(self) -> None:
        self._served = Publisher(SERVED, ("model", "method"))
        self._ended = Publisher(ENDED, ("model", "method", "outcome"))
        self._responses = Publisher(RESPONSES, ("path", "status"))
        self._totals: dict[tuple[str, ...], int] = {}

    def response(self, path: str, status: int) -> None:
        self._responses.publish(self._next("response", path, str(status)), path=path, status=str(status))

    def answer(self, model: str, method: str, outcome: str, served: Served) -> None:
        self._ended.publish(self._next("answer", model, method, outcome), model=model, method=method, outcome=outcome)
        self._served.publish(served, model=model, method=method)

    def _next(self, *key: str) -> int:
        self._totals[key] = self._totals.get(key, 0) + 1
        return self._totals[key]


async def cluster_metrics() -> str:
    """This project's metrics from the agents of all nodes, as Prometheus reads them. A node whose agent does not answer
    is left out, and a comment says so."""
    import ray

    nodes: list[dict[str, Any]] = await asyncio.to_thread(ray.nodes)
    places = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    async with httpx.AsyncClient(timeout=AGENT_TIMEOUT_S) as client:
        pages = await asyncio.gather(*(_page(client, place) for place in places))
    return merged_pages(pages)


async def _page(client: httpx.AsyncClient, place: str) -> str:
    try:
        response = await client.get(f"http://{place}/metrics")
        response.raise_for_status()
    except httpx.HTTPError as error:
        return f"# {place}: {type(error).__name__}: {error}"
    return response.text


def merged_pages(pages: Iterable[str]) -> str:
    """Pages of several processes as one: each family's HELP and TYPE once, with all its samples behind them."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    notes = []
    for page in pages:
        family = ""
        for line in page.splitlines():
            words = line.split(maxsplit=3)
            if words[:1] == ["#"] and words[1:2] in (["HELP"], ["TYPE"]) and len(words) > 2:
                family = words[2]
                if family.startswith(OURS) and line not in heads.setdefault(family, []):
                    heads[family].append(line)
            elif line.startswith("#"):
                notes.append(line)
            elif line.startswith(OURS):
                samples.setdefault(family, []).append(line)
    families = [line for family, told in samples.items() for line in (*heads.get(family, []), *told)]
    return "\n".join([*notes, *families, ""])
