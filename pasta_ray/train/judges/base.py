"""What every judge answers: which of two answers to a question is the better one, as a probability."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Question:
    """What was asked. ``input`` is the material that the instruction speaks of."""

    instruction: str
    input: str | None = None
    system: str | None = None

    @property
    def text(self) -> str:
        """Instruction and input as one message, as the models are asked."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Answer:
    """The text that a reader sees. ``finished`` is false where a length limit cut it off."""

    text: str
    finished: bool = True


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question."""

    question: Question
    first: Answer
    second: Answer


class Judge(Protocol):
    """``name`` is what reports and scored samples carry: ``local``, or ``llm:`` and the model's name."""

    @property
    def name(self) -> str: ...

    @property
    def counts_wins(self) -> bool:
        """Whether the quality of a sample among others counts comparisons won and lost. A weak judge's probabilities
        are all near one half: right as such, but of no weight beside a speedup."""
        ...

    def compare(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """For each, the probability in [0, 1] that the first answer is the better one; None where the judge gave no
        usable verdict (a miss). Swapping the answers gives the complement."""
        ...

    def features(self, question: Question, answer: Answer) -> dict[str, float]:
        """What the judgement of an answer rests on, as far as it can be told in numbers."""
        ...

    def costs(self) -> dict[str, float]:
        """What its comparisons have cost so far, in whatever they cost."""
        ...


def preferred(verdict: float) -> float:
    """1 where the first answer won, 0 where it lost, one half for a draw."""
    return 0.5 if verdict == 0.5 else float(verdict > 0.5)
