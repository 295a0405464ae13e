"""The decoding engine: torch, no ray. KV caches that fork and join without copying, and batches over all branches."""

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.replay import replay

__all__ = ["Engine", "EngineConfig", "replay"]
