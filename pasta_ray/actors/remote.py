"""Talking to an actor: its streams end when we stop reading, and its errors arrive as ours."""

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError, TaskCancelledError

from pasta_ray.actors.messages import Policy, ReplicaDiedError, ReplicaStats
from pasta_ray.engine.messages import Events, Request
from pasta_ray.errors import PastaError, ReplicaError


def translated(error: Exception, name: str) -> PastaError:
    """What went wrong at the far end of a call to actor ``name``, without Ray's traceback around it."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, PastaError):
            return cause
        return PastaError(f"{name} failed: {type(cause).__name__}: {cause}")
    if isinstance(error, RayActorError):
        lines = str(error).strip().splitlines()
        why = lines[-1] if "creation task" in lines[0] else lines[0]  # of a traceback, its last line
        return ReplicaDiedError(f"{name} is gone: {why}")
    if isinstance(error, TaskCancelledError):
        return ReplicaError(f"{name} cancelled the request")
    return ReplicaError(f"{name} cannot be reached: {error}")


async def stream(actor: Any, name: str, *args: Any) -> AsyncGenerator[Events, None]:
    """``actor.decode(*args)``; leaving the iteration early cancels the call, and with it all that it caused."""
    generator = actor.decode.remote(*args)
    ended = False
    try:
        async for message in generator:
            yield await message
        ended = True
    except RayError as error:
        ended = True
        raise translated(error, name) from None
    finally:
        if not ended:
            ray.cancel(generator)


async def call(method: Any, name: str, *args: Any) -> Any:
    """The answer of a remote method."""
    try:
        return await method.remote(*args)
    except RayError as error:
        raise translated(error, name) from None


class RemoteReplica:
    """A decode actor as the coordinator uses it. ``start`` gives the actor: the one that is there, or a new one, where
    it is this coordinator's to start; if not, it raises ValueError where there is none."""

    def __init__(self, name: str, start: Callable[[], Any]) -> None:
        self.name = name
        self._start = start
        self._actor = start()

    def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        return stream(self._actor, f"replica {self.name}", request)

    async def ping(self, draining: bool | None) -> ReplicaStats:
        """Ray starts an actor again whose process died; one that has ended for good is replaced here."""
        try:
            stats: ReplicaStats = await self._actor.ping.remote(draining)
        except RayError as error:
            if isinstance(error, ActorDiedError):
                with suppress(ValueError):
                    self._actor = self._start()
            raise translated(error, f"replica {self.name}") from None
        return stats

    async def stats(self) -> ReplicaStats:
        stats: ReplicaStats = await call(self._actor.stats, f"replica {self.name}")
        return stats

    async def place(self, policy: Policy) -> None:
        """Which bodies of its requests may leave it."""
        await call(self._actor.place, f"replica {self.name}", policy)

    def restart(self) -> None:
        """End the process; Ray starts the actor again."""
        ray.kill(self._actor, no_restart=False)

    def end(self) -> None:
        """End the process for good."""
        ray.kill(self._actor, no_restart=True)
