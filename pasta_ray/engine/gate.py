"""When a forked body may start: at once while the replica has rows to spare, in turn when it is full.

A body that waits gives the tokens that it would have given, only later: what it sees was settled when it was forked.
"""

from collections.abc import Callable, Iterable

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.engine import Engine


class RowGate:
    """Bodies that wait, in the order of their forks. ``max_rows`` says how many rows a step may have; 0 is no bound.

    A request always has a row: where its main branch waits for bodies, one of these runs however full the replica is.
    So a full replica decodes each request in turn, as if nothing had been forked, and nobody waits for ever.
    """

    def __init__(self, engine: Engine, max_rows: Callable[[], int]) -> None:
        self._engine = engine
        self._max_rows = max_rows
        self._waiting: list[Branch] = []
        self.num_delayed = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def enter(self, body: Branch) -> None:
        """``body`` has just been forked: it runs from the next step on, or waits."""
        if self._full(active_rows(self._engine.branches)):
            self._engine.hold(body)
            self._waiting.append(body)
            self.num_delayed += 1

    def admit(self) -> None:
        """Before a step: let in as many as there is room for, and one of each request that has no row otherwise."""
        self._waiting = [body for body in self._waiting if body.held and not body.closed]
        for body in list(self._waiting):
            if not self._full(active_rows(self._engine.branches) + 1) or not active_rows(
                self._engine.tenant(body).branches
            ):
                self._engine.release(body)
                self._waiting.remove(body)

    def _full(self, num_rows: int) -> bool:
        max_rows = self._max_rows()
        return bool(max_rows) and num_rows > max_rows


def active_rows(branches: Iterable[Branch]) -> int:
    """How many of them a step would feed a token that it samples behind."""
    return sum(branch.decoding and not branch.held for branch in branches)
