"""When a place will be free, from how long answers have taken."""

from dataclasses import dataclass

WEIGHT = 0.2
MOST_S = 60.0


@dataclass
class Pace:
    """``num_places`` answers at the same time; ``answer_s`` is what one takes, lately."""

    num_places: int
    answer_s: float = 1.0

    def observe(self, seconds: float) -> None:
        """An answer has left its place after so long."""
        self.answer_s += WEIGHT * (seconds - self.answer_s)

    def wait_s(self, num_waiting: int) -> float:
        """Until who comes behind ``num_waiting`` others finds a place."""
        return min(MOST_S, self.answer_s * (num_waiting + 1) / self.num_places)
