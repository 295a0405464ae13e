"""Who holds KV: requests share a bounded number of bytes, first come first served, and the youngest gives way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.moving import put_kv
from pasta_ray.engine.slab import KVShape, Slab
from pasta_ray.errors import InputError

ROUNDING = 64  # a first allocation is a multiple of this many slots where there is room


@dataclass(eq=False)
class Tenant:
    """One request as the pool sees it: its slab, its branches with the main one first, and how many tokens of that
    one are the prompt. ``imports`` are KV that was computed elsewhere, for the first tokens of their branches; it is
    kept, since it comes back into the slab after a preemption as it did the first time."""

    slab: Slab
    branches: list[Branch]
    num_prompt: int
    imports: dict[Branch, KVBlock] = field(default_factory=dict)

    @property
    def main(self) -> Branch:
        return self.branches[0]

    def load_imports(self) -> None:
        """Put into a resident slab what has been imported and is not there."""
        for branch, block in self.imports.items():
            if branch.num_fed == 0:
                put_kv(self.slab, branch.slots[: block.num_tokens], block)
                branch.mark_fed(block.num_tokens)

    def preempt(self) -> None:
        """Drop all KV; every token waits to be fed again, or imported."""
        self.slab.release()
        for branch in self.branches:
            branch.preempt()

    def check_integrity(self) -> None:
        """Raises AssertionError where slots, branches and what has been fed do not agree."""
        slots = [slot for branch in self.branches for slot in branch.slots]
        assert len(slots) == len(set(slots)), "a slot of two tokens"
        assert all(0 <= slot < self.slab.end for slot in slots), "a slot that was never assigned"
        seen = set(np.flatnonzero(self.slab.visible_BS.any(axis=0)).tolist())
        assert seen == set(slots), "what is seen is not what there is"
        for branch in self.branches:
            assert branch.slab is self.slab
            assert len(branch.tokens) == len(branch.slots) == len(branch.positions)
            assert 0 <= branch.num_fed <= branch.num_computed <= len(branch.tokens)
            assert self.slab.resident or not branch.num_fed, "fed into KV that is not there"
            assert all(branch.visible[branch.slots]), "a branch that does not see itself"
            assert all(0 <= first <= len(branch.tokens) for first, _ in branch.joins)


class Pool:
    """Tenants come in order of arrival, and those with KV are always a prefix of that order: room is given from the
    oldest on, nobody overtakes the first that waits, and who is preempted is the youngest that holds any. So the
    oldest can always go on, and all others after it."""

    def __init__(self, shape: KVShape, max_bytes: int | None) -> None:
        self.bytes_per_slot = shape.bytes_per_slot
        self.max_bytes = max_bytes
        self.num_preemptions = 0

    @property
    def max_slots(self) -> int | None:
        """What one request can have at most, alone; None is unbounded."""
        return None if self.max_bytes is None else self.max_bytes // self.bytes_per_slot

    def check_fits(self, num_slots: int, what: str) -> None:
        """Raises InputError where ``what``, of ``num_slots`` tokens, could not run even alone."""
        if self.max_slots is not None and num_slots > self.max_slots:
            raise InputError(
                f"{what} needs {num_slots * self.bytes_per_slot} bytes of KV for {num_slots} tokens;"
                f" allowed: max_kv_bytes {self.max_bytes}, which is {self.max_slots} tokens"
            )

    def make_room(self, tenants: Sequence[Tenant]) -> list[Tenant]:
        """Give tenants KV for all their slots, oldest first, and the new holders back. Raises InputError for one that
        has outgrown the whole pool."""
        admitted: list[Tenant] = []
        for tenant in tenants:
            slab = tenant.slab
            if slab.end <= slab.capacity:
                continue
            was_resident = slab.resident
            self.check_fits(slab.end, "a request")
            while not self._fit(slab, tenants):
                if not was_resident:
                    return admitted
                youngest = next(other for other in reversed(tenants) if other.slab.resident)
                youngest.preempt()
                self.num_preemptions += 1
                if youngest is tenant:
                    return admitted
            if not was_resident:
                admitted.append(tenant)
        return admitted

    def has_room(self, slab: Slab, tenants: Sequence[Tenant]) -> bool:
        """Whether ``slab`` can have KV for all its slots without a preemption."""
        free = self._num_free(tenants)
        return free is None or slab.end <= slab.capacity + free

    def num_spare(self, tenant: Tenant, tenants: Sequence[Tenant], wanted: int) -> int:
        """Up to ``wanted`` slots that ``tenant`` can have without taking anybody's, beside one for each branch's next
        token."""
        slab, free = tenant.slab, self._num_free(tenants)
        if free is None:
            return wanted
        return max(0, min(wanted, slab.capacity + free - slab.num_slots - len(tenant.branches)))

    def _fit(self, slab: Slab, tenants: Sequence[Tenant]) -> bool:
        """Allocate at least what ``slab`` needs and at best twice what it has, for few copies; or tell that it cannot
        be had."""
        if not self.has_room(slab, tenants):
            return False
        wanted = slab.capacity * 2 or -(-slab.end // ROUNDING) * ROUNDING
        while wanted < slab.end:
            wanted *= 2
        free = self._num_free(tenants)
        slab.allocate(wanted if free is None else min(wanted, slab.capacity + free))
        return True

    def _num_free(self, tenants: Sequence[Tenant]) -> int | None:
        """Slots that nobody holds; None is any number."""
        if self.max_slots is None:
            return None
        return self.max_slots - sum(tenant.slab.capacity for tenant in tenants)

    def check_integrity(self, tenants: Sequence[Tenant]) -> None:
        """Raises AssertionError where the books are wrong."""
        for tenant in tenants:
            tenant.check_integrity()
        held = sum(tenant.slab.kv_bytes for tenant in tenants)
        assert self.max_bytes is None or held <= self.max_bytes, f"{held} bytes held of {self.max_bytes}"
        resident = [tenant.slab.resident for tenant in tenants]
        assert resident == sorted(resident, reverse=True), "a younger request holds KV while an older one waits"
