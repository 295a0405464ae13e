"""The engine: four primitives, ``open``, ``fork``, ``join`` and ``step``, and what belongs to them.

Everything here runs in one thread: none of the methods may be called while another one runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from pasta_ray.engine.branch import Branch, Constraint
from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.kernels import choose_kernels
from pasta_ray.engine.messages import MAIN_BRANCH, Sampling
from pasta_ray.engine.model import DecoderModel
from pasta_ray.engine.runner import Runner
from pasta_ray.engine.sampler import SampleRow, sample
from pasta_ray.engine.scheduler import Feed, RequestFeeds, Scheduler
from pasta_ray.engine.slab import Slab
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import load_checkpoint
from pasta_ray.errors import InputError


@dataclass(frozen=True, eq=False)
class StepOutput:
    """What a step gave a branch: ``token``, sampled behind all that was pending and now pending itself, and
    for a branch with ``keep_logits`` the float32 [num fed, vocab] ``logits`` behind every token fed."""

    branch: Branch
    token: int | None
    logits: torch.Tensor | None


class Engine:
    """One copy of a model's weights, and the branches decoded with it. ``masks``, bool [num_masks, vocab] with True
    where a token is allowed, is the bank that constraints point into."""

    def __init__(self, config: EngineConfig) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.config = config
        self._checkpoint = load_checkpoint(config)
        self.tags = self._checkpoint.tags
        with torch.inference_mode():
            tensors = self._checkpoint.take_tensors()
            kernels = choose_kernels(config)
            self.model = DecoderModel(
                self._checkpoint.config,
                tensors,
                getattr(torch, config.dtype),
                torch.device(config.device),
                kernels.make_linear,
                kernels.make_ops,
            )
        self.masks: torch.Tensor | None = None
        self.scheduler = Scheduler(config.prefill_chunk)
        self.runner = Runner(self.model)
        self._requests: dict[Slab, list[Branch]] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded when first asked for: token ids alone need none."""
        return Tokenizer.load(self._checkpoint.folder, self.tags)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of what the weights were loaded from: equal for replicas whose KV is interchangeable."""
        return self._checkpoint.fingerprint(self.config.dtype)

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.model.vocab_size

    @property
    def max_positions(self) -> int:
        return self.model.max_positions

    @property
    def num_slots(self) -> int:
        """Slots in use, of all requests."""
        return sum(slab.num_slots for slab in self._requests)

    @property
    def num_branches(self) -> int:
        """Branches that are not closed, of all requests."""
        return sum(not branch.closed for branches in self._requests.values() for branch in branches)

    @property
    def has_work(self) -> bool:
        """Whether a step would feed anything."""
        return bool(self.scheduler.schedule(list(self._requests.values())))

    def open(
        self,
        prompt_ids: Sequence[int],
        *,
        sampling: Sampling | None = None,
        constraint: Constraint | None = None,
        path: str = MAIN_BRANCH,
        keep_logits: bool = False,
    ) -> Branch:
        """Start a request with its main branch. Without ``sampling`` the branch only takes the tokens it is fed.

        Raises InputError for a prompt that is empty, too long, or holds ids outside the vocabulary.
        """
        if not prompt_ids:
            raise InputError("the prompt is empty; at least one token is needed")
        if len(prompt_ids) >= self.max_positions:
            raise InputError(f"the prompt has {len(prompt_ids)} tokens; allowed: below {self.max_positions}")
        self._check_ids(prompt_ids)
        slab = Slab(self.model.kv_shape)
        branch = Branch(path, slab, slab.add_branch(), 0, sampling, constraint, keep_logits)
        branch.append(prompt_ids)
        self._requests[slab] = [branch]
        return branch

    def fork(
        self,
        parent: Branch,
        forced: Sequence[int],
        *,
        path: str,
        gap: int = 0,
        sampling: Sampling | None = None,
        constraint: Constraint | None = None,
        keep_logits: bool = False,
    ) -> Branch:
        """A child that starts with ``forced`` at the parent's next position and sees what the parent sees now, its
        pending tokens included. The parent goes on ``gap`` positions later. Copies a row of booleans, never KV."""
        assert forced, "a fork starts with at least one token"
        assert not parent.closed, f"branch {parent.path} is closed"
        self._check_ids(forced)
        slab = parent.slab
        child = Branch(path, slab, slab.add_branch(parent.row), parent.next_position, sampling, constraint, keep_logits)
        child.append(forced)
        parent.next_position += gap
        self._requests[slab].append(child)
        return child

    def join(self, branch: Branch, children: Sequence[Branch]) -> None:
        """``branch`` sees from now on what ``children`` see; so do its pending tokens, and the children's pending
        tokens are seen too: both may be fed in one step."""
        assert not branch.closed, f"branch {branch.path} is closed"
        assert all(child.slab is branch.slab for child in children), "branches of different requests cannot join"
        if children:
            branch.slab.join(branch.row, [child.row for child in children])

    def feed(self, branch: Branch, ids: Sequence[int]) -> None:
        """Append ``ids`` to the branch; they wait for a step."""
        assert not branch.closed, f"branch {branch.path} is closed"
        self._check_ids(ids)
        branch.append(ids)

    def hold(self, branch: Branch) -> None:
        """Keep the branch's pending tokens out of every step until :meth:`release`."""
        branch.held = True

    def release(self, branch: Branch) -> None:
        branch.held = False

    def settle(self, branch: Branch) -> None:
        """Sample nothing more for the branch; what is pending is still fed."""
        branch.settled = True

    def close(self, branch: Branch) -> None:
        """The branch takes no further part; its pending tokens are dropped and seen by nobody. What it has fed stays
        visible to those who see it, and it may still be joined."""
        branch.drop_pending()
        branch.closed = True

    def free(self, branch: Branch) -> None:
        """End the branch's request, also in mid-decode: close all its branches and release every slot."""
        for other in self._requests.pop(branch.slab, []):
            other.closed = True

    def step(self) -> list[StepOutput]:
        """One forward pass over everything that waits; no outputs where nothing does."""
        batch = self.scheduler.schedule(list(self._requests.values()))
        if not batch:
            return []
        with torch.inference_mode():
            return self._commit(batch, self.runner.run(batch))

    def _commit(self, batch: list[RequestFeeds], logits_RV: torch.Tensor) -> list[StepOutput]:
        """Mark the batch as fed, and append a sampled token to every branch that has run out."""
        feeds = [feed for request in batch for feed in request]
        sampling = [feed for feed in feeds if feed.samples]
        tokens = dict(zip((feed.branch for feed in sampling), self._sample(feeds, sampling, logits_RV), strict=True))
        outputs = []
        row = 0
        for feed in feeds:
            branch, token = feed.branch, tokens.get(feed.branch)
            logits = logits_RV[row : row + feed.num_logits] if branch.keep_logits else None
            row += feed.num_logits
            branch.num_fed += feed.num_tokens
            if token is not None:
                branch.append([token])
                if branch.constraint is not None:
                    branch.constraint.advance(token)
            if token is not None or logits is not None:
                outputs.append(StepOutput(branch, token, logits))
        return outputs

    def _sample(self, feeds: list[Feed], sampling: list[Feed], logits_RV: torch.Tensor) -> list[int]:
        if not sampling:
            return []
        if len(sampling) != len(logits_RV):
            last_rows = torch.tensor([feed.num_logits for feed in feeds]).cumsum(0) - 1
            picked = torch.tensor([feed.samples for feed in feeds])
            logits_RV = logits_RV[last_rows[picked].to(logits_RV.device)]
        return sample(logits_RV, [_sample_row(feed.branch) for feed in sampling], self.masks)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise InputError(f"token ids go from {min(ids)} to {max(ids)}; allowed: 0 to {self.vocab_size - 1}")


def _sample_row(branch: Branch) -> SampleRow:
    assert branch.sampling is not None
    mask_row = branch.constraint.mask_row if branch.constraint is not None else None
    return SampleRow(branch.sampling, branch.path, len(branch.tokens), mask_row)
