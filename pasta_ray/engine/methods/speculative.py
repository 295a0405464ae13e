"""Other methods with drafts: the same tokens in fewer steps (Leviathan et al. 2023, arXiv 2211.17192)."""

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.methods.base import Run
from pasta_ray.engine.methods.pasta import PastaRun
from pasta_ray.engine.methods.sequential import SequentialRun


class Speculative(Run):
    """All branches of a method draft. Its critical path is the steps really taken, so that the report's theoretical
    speedup is what drafts and branches gain together, were a step of several tokens as fast as one of a single token.
    """

    def drafting(self) -> dict[Branch, int]:
        """A draft and the token sampled behind it end no later than the answer."""
        room = self.request.max_tokens - self.num_visible - 1
        branches = [track.branch for track in self.tracks.values()] if room else []
        return {branch: room for branch in branches if branch.draftable}

    def critical_path(self) -> int:
        return self.num_steps


class SpeculativeRun(Speculative, SequentialRun):
    """Sequential decoding's tokens, greedy and sampled."""


class SpeculativePastaRun(Speculative, PastaRun):
    """PASTA whose main branch and bodies draft. Every branch writes what it writes without drafts, unless a limit that
    all branches share is met: ``max_branches`` and ``max_tokens`` depend on how far each of them is by then."""
