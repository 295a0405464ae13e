"""Clients that leave before their answer begins. Of a stream that has begun, `streaming` takes care."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from pasta_ray.errors import PastaError

T = TypeVar("T")


class ClientLeftError(PastaError):
    """Nobody waits for the answer any more, nor reads this."""

    http_status = 499  # nginx's number for it


async def unless_left(receive: Receive, answer: Coroutine[Any, Any, T]) -> T:
    """What ``answer`` gives. When the client leaves first, it is cancelled, which frees its slots, and ClientLeftError
    is raised. ``receive`` has given the whole body."""
    answering, leaving = asyncio.create_task(answer), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientLeftError("the client left before its answer")
        return await answering
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
