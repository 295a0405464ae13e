"""The decoding engine: torch, no ray. KV caches that fork and join without copying, and batches over all branches.

`Engine` and `replay` are loaded when they are first asked for: a process that only passes messages on, such as a
coordinator that starts anew, waits for no torch.
"""

from typing import TYPE_CHECKING

from pasta_ray.engine.config import EngineConfig

if TYPE_CHECKING:
    from pasta_ray.engine.engine import Engine
    from pasta_ray.engine.replaying import replay

__all__ = ["Engine", "EngineConfig", "replay"]


def __getattr__(name: str) -> object:
    if name == "Engine":
        from pasta_ray.engine.engine import Engine

        return Engine
    if name == "replay":
        from pasta_ray.engine.replaying import replay

        return replay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
