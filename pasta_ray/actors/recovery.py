"""Answers that outlive the process that writes them: opened again from what their reader has seen."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from pasta_ray.actors.messages import ReplicaDiedError
from pasta_ray.engine.messages import BranchClosed, Events, PromiseOpened, Request
from pasta_ray.engine.progress import Progress
from pasta_ray.errors import ReplicaError
from pasta_ray.logs import fields

logger = logging.getLogger(__name__)


Attempt = Callable[[Request], AsyncGenerator[Events, None]]
"""Answers a request from its progress on. Raises ReplicaDiedError where what answers has died."""


def fold(progress: Progress, message: Events) -> Progress:
    """The progress once ``message`` has been read."""
    opened = tuple(event.branch for event in message.events if isinstance(event, PromiseOpened))
    closed = {event.branch for event in message.events if isinstance(event, BranchClosed)}
    return progress.after(message.steps, opened, closed)


async def recovered(
    request: Request, attempt: Attempt, max_deaths: int, on_death: Callable[[], None] = lambda: None
) -> AsyncGenerator[Events, None]:
    """The request's messages, each once, however often what answers it dies. ``on_death`` is called before each time
    that it is opened again. Raises ReplicaError after more than ``max_deaths`` deaths in a row."""
    clock = asyncio.get_running_loop().time
    progress, submitted = request.progress, clock() - request.progress.elapsed_s
    num_deaths = 0
    while True:
        try:
            async with aclosing(attempt(request)) as messages:
                async for message in messages:
                    progress, num_deaths = fold(progress, message), 0
                    yield message
            return
        except ReplicaDiedError as error:
            num_deaths += 1
            if num_deaths > max_deaths:
                raise ReplicaError(
                    f"{error}; what answered request {request.id} died {num_deaths} times in a row; try again later"
                ) from error
            told = fields(trace=request.trace, request=request.id, steps=len(progress.steps), error=str(error))
            logger.warning("goes on elsewhere", extra=told)
            request = replace(request, progress=replace(progress, elapsed_s=clock() - submitted))
            on_death()
