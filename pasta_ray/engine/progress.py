"""How far an answer has come: what any engine needs to go on with it as if it had decoded it so far itself.

A method's state is a function of the tokens that it has taken and of the steps that they came in. So steps are what is
written down, and not what follows from them: what a body is joined by, what each branch sees, where it stands.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampled:
    """What a step gave a branch: the accepted tokens of its draft of ``num_drafted``, and the one sampled behind."""

    branch: str
    tokens: tuple[int, ...]
    num_drafted: int = 0


@dataclass(frozen=True)
class Step:
    """What a step gave a request, in the order in which its method took it, ``elapsed_s`` after its submission."""

    elapsed_s: float
    sampled: tuple[Sampled, ...]


@dataclass(frozen=True)
class Progress:
    """The steps of an answer so far, and the bodies that are open by now; ``elapsed_s`` are the seconds since it was
    first asked for, lost ones included."""

    steps: tuple[Step, ...] = ()
    open_bodies: tuple[str, ...] = ()
    elapsed_s: float = 0.0

    def after(self, steps: tuple[Step, ...], opened: Collection[str] = (), closed: Collection[str] = ()) -> "Progress":
        """The progress once ``steps`` have come too, in which these bodies were opened and closed."""
        bodies = tuple(body for body in (*self.open_bodies, *opened) if body not in closed)
        return Progress(self.steps + steps, bodies, self.elapsed_s)

    @property
    def num_tokens(self) -> int:
        """Sampled tokens of all branches."""
        return sum(len(sampled.tokens) for step in self.steps for sampled in step.sampled)

    @property
    def branches(self) -> tuple[str, ...]:
        """The paths of all branches that have a token, in the order of their first."""
        return tuple(dict.fromkeys(sampled.branch for step in self.steps for sampled in step.sampled))

    def tokens(self, branch: str) -> tuple[int, ...]:
        """The sampled tokens of one branch; those that a method forced are not among them."""
        return tuple(
            token
            for step in self.steps
            for sampled in step.sampled
            if sampled.branch == branch
            for token in sampled.tokens
        )
