"""What a step costs: seconds against the rows that it feeds, measured at start and corrected by every step since."""

from bisect import bisect_left
from dataclasses import dataclass

NEAR, FAR = 0.2, 0.02  # how far one observation moves the points around it, and all others
WORTHWHILE = 0.9  # rows are worth having up to this share of the best throughput


@dataclass
class StepCurve:
    """Seconds of a step by its rows (tokens fed), linear between points: ``points`` are (rows, seconds), with rising
    rows. A step of a prefill has as many rows as its chunk."""

    points: list[tuple[int, float]]

    def __post_init__(self) -> None:
        rows = [rows for rows, _ in self.points]
        assert rows == sorted(set(rows)), f"rows must rise: {rows}"
        assert rows, "a curve has a point"
        assert all(seconds > 0 for _, seconds in self.points), "a step takes time"

    def seconds(self, rows: float) -> float:
        """Of a step of so many rows."""
        if len(self.points) == 1:
            return self.points[0][1]
        index = min(max(1, self._above(rows)), len(self.points) - 1)
        (low, low_s), (high, high_s) = self.points[index - 1 : index + 1]
        return max(low_s + (high_s - low_s) * (rows - low) / (high - low), min(low_s, high_s) / 2)

    def prefill_s(self, num_tokens: int) -> float:
        """Of feeding so many tokens in the largest steps that are known."""
        most = self.points[-1][0]
        return num_tokens / most * self.seconds(most) if num_tokens > most else self.seconds(num_tokens)

    def observe(self, rows: int, seconds: float) -> None:
        """Correct the curve by a step that was taken: the points around it more, all others a little, since what makes
        a machine slower for a while mostly makes it so for all."""
        ratio = min(5.0, max(0.2, seconds / self.seconds(rows)))
        above = self._above(rows)
        self.points = [
            (at, at_s * ratio ** (NEAR if index in (above - 1, above) else FAR))
            for index, (at, at_s) in enumerate(self.points)
        ]

    def worthwhile_rows(self) -> int:
        """So many rows give most of the throughput that any number of them gives; more only make each of them slow."""
        per_row = {rows: rows / self.seconds(rows) for rows in range(1, self.points[-1][0] + 1)}
        enough = WORTHWHILE * max(per_row.values())
        return next(rows for rows, throughput in per_row.items() if throughput >= enough)

    def _above(self, rows: float) -> int:
        """Index of the first point that has at least so many rows."""
        return bisect_left(self.points, rows, key=lambda point: point[0])
