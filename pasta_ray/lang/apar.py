"""APAR's language (Liu et al. 2024, arXiv 2401.06761): two control tokens, and where a thread may write them."""

from dataclasses import dataclass, field

from pasta_ray.lang.grammar import Phase
from pasta_ray.lang.tags import TokenMap

CONTROL_NAMES = ("<|fork|>", "<|child|>")
MAX_DEPTH = 4  # of threads below the first one: a list in a list, with room to spare


@dataclass(frozen=True)
class ControlMap(TokenMap):
    """``fork`` ends a paragraph that has details, which a thread of their own writes behind a forced ``child``."""

    names = CONTROL_NAMES
    file = "apar.json"

    fork: int
    child: int


@dataclass
class Forks:
    """What the threads of one answer share: how many forks there are, and which threads may still fork, oldest first.

    ``max_forks`` bounds the forks of the answer, ``max_open`` the forked threads that are decoded at the same time.
    """

    max_forks: int
    max_open: int
    num_forks: int = 0
    num_open: int = 0
    threads: "list[ThreadGrammar]" = field(default_factory=list)

    @property
    def room(self) -> int:
        return min(self.max_forks - self.num_forks, self.max_open - self.num_open)


@dataclass(eq=False)
class ThreadGrammar:
    """One thread: text, and a fork behind some text of its own where there is room for it.

    All threads choose in the same step, so with room for n forks only the n oldest threads that could are allowed to.
    """

    controls: ControlMap
    forks: Forks
    depth: int
    has_text: bool = False

    def __post_init__(self) -> None:
        self.forks.threads.append(self)

    @property
    def could_fork(self) -> bool:
        return self.has_text and self.depth < MAX_DEPTH

    @property
    def mask_row(self) -> int:
        if not self.could_fork:
            return Phase.PLAIN
        older = sum(thread.could_fork for thread in self.forks.threads[: self.forks.threads.index(self)])
        return Phase.THREAD if older < self.forks.room else Phase.PLAIN

    def advance(self, token: int) -> None:
        """Move on by a token that the mask allowed."""
        self.has_text = token != self.controls.fork

    def end(self) -> None:
        """The thread writes no more."""
        self.forks.threads.remove(self)
        self.forks.num_open -= bool(self.depth)
