"""What a request takes from the prefix cache, and what it leaves there: the start of its main branch."""

from collections.abc import Sequence

from pasta_ray.engine.pool import Tenant
from pasta_ray.engine.prefix import Lease, PrefixCache


class PrefixReuse:
    """The part of a main branch that is a plain chain from position 0 is anybody's who starts with the same tokens.
    ``num_looked_up`` counts tokens that were looked for, ``num_found`` those that were copied and not computed."""

    def __init__(self, max_bytes: int) -> None:
        self.cache = PrefixCache(max_bytes)
        self.num_looked_up = 0
        self.num_found = 0
        self._leases: dict[Tenant, Lease] = {}

    def load(self, tenant: Tenant) -> None:
        """Copy the longest cached prefix into a slab that has just got its KV. The last token is left to be fed, for
        its logits, and so is the last of those that are fed again, so that a step is theirs: before the next one its
        branches may draft, as they have before. A branch that keeps all logits takes nothing."""
        main = tenant.main
        if not self._takes_part(tenant):
            return
        ids = main.tokens[: min(main.num_plain, main.num_feedable, (main.num_lost or len(main.tokens)) - 1)]
        lease = self._lease(tenant, ids)
        start = 0
        for run in lease.runs():
            slots = tenant.slab.index(main.slots[start : start + len(run.ids)])
            for own, cached in ((tenant.slab.keys, run.keys), (tenant.slab.values, run.values)):
                for own_HSD, cached_HND in zip(own, cached, strict=True):
                    own_HSD[:, slots] = cached_HND
            start += len(run.ids)
        main.mark_fed(lease.num_tokens)
        self.num_looked_up += len(ids)
        self.num_found += lease.num_tokens

    def keep(self, tenant: Tenant) -> None:
        """Leave the KV of the main branch's plain chain in the cache, and pin it for the rest of the request."""
        main, slab = tenant.main, tenant.slab
        length = min(main.num_plain, main.num_fed)
        if self._takes_part(tenant) and length:
            slots = slab.index(main.slots[:length])
            keys, values = ([tensor[:, slots] for tensor in tensors] for tensors in (slab.keys, slab.values))
            self.cache.insert(main.tokens[:length], keys, values)
            self._lease(tenant, main.tokens[:length])

    def end(self, tenant: Tenant) -> None:
        """The request is over: what it left is pinned no more."""
        if tenant in self._leases:
            self.cache.release(self._leases.pop(tenant))

    def check_integrity(self, tenants: Sequence[Tenant]) -> None:
        """Raises AssertionError where the cache is wrong, or pinned for others than ``tenants``."""
        self.cache.check_integrity()
        assert self._leases.keys() <= set(tenants), "a lease that outlives its request"
        assert self.cache.num_pins == len(self._leases), "pins without a lease"

    def _lease(self, tenant: Tenant, ids: list[int]) -> Lease:
        """The request's lease, in place of the one it had."""
        lease = self.cache.match(ids)
        if tenant in self._leases:
            self.cache.release(self._leases[tenant])
        self._leases[tenant] = lease
        return lease

    def _takes_part(self, tenant: Tenant) -> bool:
        return self.cache.max_bytes > 0 and not tenant.main.keep_logits
