"""How many replicas there should be: by what lives on them, not by how many requests come.

Pure: figures and the time go in, a number comes out. As in Kubernetes' horizontal autoscaler, load over target is what
is needed, and a window for each direction keeps a moment's peak or pause from moving anything.
"""

import math
from collections import deque
from collections.abc import Sequence

from pasta_ray.actors.messages import ReplicaStats
from pasta_ray.engine.curve import StepCurve

TARGET = 0.7
"""The load that a replica should have: the rest is for what comes while another one starts."""


def load(stats: ReplicaStats) -> float:
    """Of a replica, 1 where it is full: live branches over the rows that pay, or KV over its bound, whichever is more;
    at least 1 while requests wait for KV room."""
    rows = StepCurve(list(stats.curve)).worthwhile_rows() if stats.curve else 0
    by_branches = stats.num_branches / rows if rows else 0.0
    by_kv = stats.counters.kv_bytes / stats.max_kv_bytes if stats.max_kv_bytes else 0.0
    return max(by_branches, by_kv, float(stats.counters.num_waiting > 0))


class Scaler:
    """Between ``least`` and ``most`` replicas. More once they have been needed for ``up_s``, fewer once they have not
    been needed for ``down_s``."""

    def __init__(self, least: int, most: int, up_s: float, down_s: float) -> None:
        self.least, self.most = least, most
        self._up_s, self._down_s = up_s, down_s
        self._needs = deque[tuple[float, int]]()  # back to the start of the longer window

    def wanted(self, now: float, loads: Sequence[float], num_there: int) -> int:
        """Given the ``loads`` of the replicas that are ready, and how many there are: starting ones too, but not those
        that are draining, whose load the others are to take."""
        self._needs.append((now, min(max(math.ceil(sum(loads) / TARGET), self.least), self.most)))
        while len(self._needs) > 1 and self._needs[1][0] <= now - max(self._up_s, self._down_s):
            self._needs.popleft()
        lately = self._within(now, self._up_s)
        if lately and min(lately) > num_there:
            return min(lately)
        for_long = self._within(now, self._down_s)
        if for_long and max(for_long) < num_there:
            return max(for_long)
        return num_there

    def _within(self, now: float, seconds: float) -> list[int]:
        """What has been needed for so long; nothing while that is not known."""
        since = now - seconds
        return [need for at, need in self._needs if at >= since] if self._needs[0][0] <= since else []
