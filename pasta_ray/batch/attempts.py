"""Which rows were being decoded when a process died: the memory that the processes themselves cannot have."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray

from pasta_ray.errors import PastaError

MAX_ATTEMPTS = 3


class FatalRowError(PastaError):
    """A row has taken its process with it each time."""


class Attempts:
    """How often each row was begun without an end. An actor, so that it outlives the workers that die."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, row: int, alone: bool) -> int:
        """The earlier attempts. A row that has any is begun only by who decodes it alone."""
        earlier = self._begun[row]
        if alone or not earlier:
            self._begun[row] += 1
        return earlier

    def end(self, row: int) -> None:
        del self._begun[row]


def start_attempts() -> Any:
    return ray.remote(num_cpus=0)(Attempts).remote()


class Suspicion:
    """A worker's side: rows that were there when a process died are decoded one at a time, which finds out whose fault
    it was."""

    def __init__(self, attempts: Any) -> None:
        self._attempts = attempts
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def attempt(self, row: int) -> AsyncIterator[None]:
        """Around the decoding of a row. Raises FatalRowError for one that has been tried often enough."""
        if not await self._attempts.begin.remote(row, False):
            yield
        else:
            async with self._alone:
                earlier = await self._attempts.begin.remote(row, True)
                if earlier >= MAX_ATTEMPTS:
                    raise FatalRowError(f"the process that decoded it died, {earlier} times")
                yield
        await self._attempts.end.remote(row)
