"""Position strategies: how far the main branch's position moves on behind a promise (arXiv 2502.11517)."""

import re
from dataclasses import dataclass

from pasta_ray.errors import InputError

MAX_TOKENS = 9990  # that a promise may predict, whatever the strategy
MAX_DECODED_TOKENS = 999  # that a model may predict while it decodes, rounded down to the strategy's unit
DEFAULT_FIXED_GAP = 50  # about the mean body of lists, sections and paragraphs (GRAMMAR.md)

_NAME = re.compile(r"(?P<name>pred-1x|pred-10x|fixed)(?:-(?P<gap>[1-9][0-9]{0,3}))?")


@dataclass(frozen=True)
class PositionStrategy:
    """A checkpoint is trained and decoded with one of them; its tag map carries it.

    A promise predicts N tokens, a multiple of ``unit``, and writes N / unit. The main branch skips N positions, or
    ``fixed_gap`` of them, whatever N is.
    """

    unit: int
    fixed_gap: int | None = None

    @classmethod
    def named(cls, name: str) -> "PositionStrategy":
        """``pred-10x``, ``pred-1x``, ``fixed`` or, with another gap than the default, ``fixed-GAP``.

        Raises InputError for any other name.
        """
        match = _NAME.fullmatch(name)
        if match is None or (match["gap"] and match["name"] != "fixed"):
            raise InputError(
                f"position strategy {name!r}; allowed: pred-10x, pred-1x, fixed, fixed-GAP with a GAP of 1 to 9999"
            )
        if match["name"] == "fixed":
            return cls(PRED_10X.unit, int(match["gap"] or DEFAULT_FIXED_GAP))
        return PRED_1X if match["name"] == "pred-1x" else PRED_10X

    @property
    def name(self) -> str:
        """``PositionStrategy.named`` reads it back."""
        return f"pred-{self.unit}x" if self.fixed_gap is None else f"fixed-{self.fixed_gap}"

    def predict(self, body_tokens: int) -> int:
        """The exact N of a body of ``body_tokens`` tokens, its tags counted: rounded up to a multiple of the unit."""
        return -(-body_tokens // self.unit) * self.unit

    def gap(self, num_tokens: int) -> int:
        """The positions that the main branch skips behind a promise of ``num_tokens``."""
        return num_tokens if self.fixed_gap is None else self.fixed_gap

    def allows(self, num_tokens: int) -> bool:
        return num_tokens % self.unit == 0 and self.unit <= num_tokens <= MAX_TOKENS

    @property
    def allowed(self) -> str:
        """The lengths that a promise may predict, in words."""
        multiple = "" if self.unit == 1 else f"a multiple of {self.unit}, "
        return f"{multiple}{self.unit} to {MAX_TOKENS}"

    @property
    def max_decoded_digits(self) -> int:
        """Of N / unit, while decoding."""
        return len(str(MAX_DECODED_TOKENS // self.unit))

    @property
    def max_decoded_gap(self) -> int:
        return self.gap(MAX_DECODED_TOKENS // self.unit * self.unit)


PRED_10X = PositionStrategy(unit=10)
PRED_1X = PositionStrategy(unit=1)
