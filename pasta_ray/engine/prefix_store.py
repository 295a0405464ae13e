"""An engine's prefix cache as other replicas see it: what is there, by name, and KV out of it and into it."""

from collections.abc import Sequence
from functools import cached_property

from pasta_ray.engine.blocks import Chain
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.moving import fits, pack, tensors_of
from pasta_ray.engine.prefix import Node

LAYOUT_VERSION = 1  # of `KVBlock`, and of what a position means


class PrefixStore:
    """Used in the engine's thread, between two steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache = engine.prefixes.cache
        self._shape = engine.model.kv_shape

    @cached_property
    def key(self) -> str:
        """Equal for engines whose KV is interchangeable: the same weights, adapter, numerics, tags with their position
        strategy, and form of KV."""
        return f"{self._engine.fingerprint} {self._shape.dtype} {LAYOUT_VERSION}"

    @property
    def version(self) -> int:
        """Another one whenever the cache's content is another."""
        return self._cache.version

    @property
    def bytes_per_token(self) -> int:
        return self._shape.bytes_per_slot

    def names(self) -> frozenset[bytes]:
        """The names of all whole blocks in the cache."""
        found: list[bytes] = []
        stack: list[tuple[Node, Chain]] = [(self._cache.root, Chain.of(self.key))]
        while stack:
            node, chain = stack.pop()
            chain, names = chain.extended(node.ids)
            found += names
            stack += [(child, chain) for child in node.children.values()]
        return frozenset(found)

    def take(self, ids: Sequence[int], start: int) -> KVBlock | None:
        """A copy of the KV of ``ids[start:]`` as far as it is cached; None where nothing of that is."""
        lease = self._cache.match(ids)
        try:
            if lease.num_tokens <= start:
                return None
            parts, stop = [], 0
            for run in lease.runs():
                first, stop = stop, stop + len(run.ids)
                if stop > start:
                    part = slice(max(0, start - first), None)
                    parts.append(pack([k[:, part] for k in run.keys], [v[:, part] for v in run.values]))
            return parts[0] if len(parts) == 1 else KVBlock.joined(parts)
        finally:
            self._cache.release(lease)

    def put(self, ids: Sequence[int], start: int, block: KVBlock) -> int:
        """Keep the KV of ``ids[start:]``, as many tokens as ``block`` has; gives how many of them are cached by then:
        none where the tokens before ``start`` are not."""
        assert fits(block, self._shape), f"KV of another shape: {block.data.shape}, {block.data.dtype}"
        ids = ids[: start + block.num_tokens]
        self._cache.insert(ids, *tensors_of(block, self._shape.dtype), first=start)
        lease = self._cache.match(ids)
        self._cache.release(lease)
        return max(0, lease.num_tokens - start)
