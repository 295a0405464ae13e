"""Several asynchronous streams read as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The items of all streams as they come, each stream's in its own order. The first error ends them all, and so does
    whoever stops reading: no stream is left open."""
    waiting: dict[asyncio.Task[T | None], AsyncGenerator[T, None]] = {}
    try:
        for stream in streams:
            waiting[asyncio.create_task(_next(stream))] = stream
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in waiting if task in done]:
                stream = waiting.pop(task)
                item = task.result()
                if item is not None:
                    waiting[asyncio.create_task(_next(stream))] = stream
                    yield item
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _next(stream: AsyncGenerator[T, None]) -> T | None:
    return await anext(stream, None)
