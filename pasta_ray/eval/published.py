"""What papers report, for reference: other models on other machines, so neither more nor less than a direction."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A range of operating points, the slowest and the fastest: (speedup, length-controlled win rate's change in
    points against sequential decoding)."""

    name: str
    setting: str
    slowest: tuple[float, float]
    fastest: tuple[float, float]


PUBLISHED = (
    Published("PASTA (2025)", "Gemma 7B, H100, AlpacaEval 805, greedy, wall-clock", (1.21, 2.2), (1.93, -7.1)),
    Published("Planned Diffusion (2025)", "as its authors report it", (1.27, -0.8), (1.81, -6.3)),
)
