"""The engine: four primitives, ``open``, ``fork``, ``join`` and ``step``, and what belongs to them.

Everything here runs in one thread: none of the methods may be called while another one runs.
"""

from collections.abc import Sequence
from functools import cached_property

import torch

from pasta_ray.engine.branch import Branch, Constraint
from pasta_ray.engine.commit import StepOutput, accept, allowed, commit
from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.kernels import choose_kernels
from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.messages import MAIN_BRANCH, Counters, Sampling
from pasta_ray.engine.model import DecoderModel
from pasta_ray.engine.pool import Pool, Tenant
from pasta_ray.engine.reuse import PrefixReuse
from pasta_ray.engine.runner import Runner
from pasta_ray.engine.scheduler import Scheduler
from pasta_ray.engine.slab import Slab
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import load_checkpoint
from pasta_ray.errors import InputError


class Engine:
    """One copy of a model's weights, and the branches decoded with it. ``masks``, bool [num_masks, vocab] with True
    where a token is allowed, is the bank that constraints point into. Requests that ``max_kv_bytes`` has no room for
    wait their turn, and come back to it when they are preempted: what they give is the same, only later."""

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
        self.pool = Pool(self.model.kv_shape, config.max_kv_bytes)
        self.prefixes = PrefixReuse(config.prefix_cache_bytes)
        self._requests: dict[Slab, Tenant] = {}  # in order of arrival
        self._num_steps = self._num_rows = 0

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded when first asked for: token ids alone need none."""
        return Tokenizer.load(self._checkpoint.folder, self.tags)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of what the weights were loaded from: equal for replicas whose KV is interchangeable."""
        return self._checkpoint.fingerprint(f"{self.config.dtype} {self.config.quantization}")

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
        return sum(not branch.closed for tenant in self._requests.values() for branch in tenant.branches)

    @property
    def branches(self) -> list[Branch]:
        """All branches of all requests."""
        return [branch for tenant in self._requests.values() for branch in tenant.branches]

    @property
    def kv_bytes(self) -> int:
        """Held by all requests; what the prefix cache holds comes on top."""
        return sum(slab.kv_bytes for slab in self._requests)

    @property
    def num_waiting(self) -> int:
        """Requests that hold no KV: not admitted yet, or preempted."""
        return sum(not slab.resident for slab in self._requests)

    @property
    def num_preemptions(self) -> int:
        """How often a request has lost its KV to an older one."""
        return self.pool.num_preemptions

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens that were looked up in the prefix cache."""
        return self.prefixes.num_looked_up

    @property
    def num_prefix_hits(self) -> int:
        """Tokens of those that were found, and not prefilled."""
        return self.prefixes.num_found

    @property
    def counters(self) -> Counters:
        return Counters(
            self._num_steps,
            self._num_rows,
            self.kv_bytes,
            self.num_waiting,
            self.num_preemptions,
            self.num_prefix_tokens,
            self.num_prefix_hits,
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would feed anything, or admit a request that waits."""
        waiting = next((slab for slab in self._requests if not slab.resident), None)
        admits = waiting is not None and (not self.kv_bytes or self.pool.has_room(waiting, self._tenants))
        return admits or bool(self.scheduler.schedule(self._resident_branches))

    def tenant(self, branch: Branch) -> Tenant:
        """The request of a branch that has not been freed."""
        return self._requests[branch.slab]

    @property
    def _tenants(self) -> list[Tenant]:
        return list(self._requests.values())

    @property
    def _resident_branches(self) -> list[list[Branch]]:
        return [tenant.branches for slab, tenant in self._requests.items() if slab.resident]

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

        Never blocks: where there is no room, the request waits for a step that has some. Raises InputError for a prompt
        that is empty, too long for the model or for ``max_kv_bytes``, or holds ids outside the vocabulary.
        """
        if not prompt_ids:
            raise InputError("the prompt is empty; at least one token is needed")
        if len(prompt_ids) >= self.max_positions:
            raise InputError(f"the prompt has {len(prompt_ids)} tokens; allowed: below {self.max_positions}")
        self._check_ids(prompt_ids)
        self.pool.check_fits(len(prompt_ids), "the prompt")
        slab = Slab(self.model.kv_shape)
        branch = Branch(path, slab, slab.add_branch(), 0, sampling, constraint, keep_logits)
        branch.append(prompt_ids)
        self._requests[slab] = Tenant(slab, [branch], len(prompt_ids))
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
        pending tokens included. The parent goes on ``gap`` positions later. Copies a row of booleans, never KV. Raises
        InputError where the request outgrows ``max_kv_bytes``."""
        assert forced, "a fork starts with at least one token"
        assert not parent.closed, f"branch {parent.path} is closed"
        assert not parent.num_draft, "a child would see guesses"
        self._check_ids(forced)
        slab = parent.slab
        self.pool.check_fits(slab.num_slots + len(forced), "the request with this fork")
        row = slab.add_branch(parent.row)
        child = Branch(path, slab, row, parent.next_position, sampling, constraint, keep_logits, parent=parent)
        child.num_inherited = len(parent.tokens)
        child.append(forced)
        parent.next_position += gap
        self._requests[slab].branches.append(child)
        return child

    def join(self, branch: Branch, children: Sequence[Branch]) -> None:
        """``branch`` sees from now on what ``children``, forked from it, see; so do its pending tokens, and the
        children's pending tokens are seen too: both may be fed in one step."""
        assert not branch.closed, f"branch {branch.path} is closed"
        assert all(child.slab is branch.slab for child in children), "branches of different requests cannot join"
        assert not any(child.num_draft for child in children), "the branch would see guesses"
        never_fed = branch.slots[branch.num_computed :]
        assert not any(child.visible[never_fed].any() for child in children), "tokens would wait for each other"
        if children:
            branch.join(children)

    def graft(self, branch: Branch, ids: Sequence[int], positions: Sequence[int], block: KVBlock) -> None:
        """``branch`` sees ``ids``, whose KV was computed elsewhere, from its next token on: no token that it has now
        does. They stay a branch of their own, which takes no further part. Raises InputError as :meth:`feed` does."""
        assert not branch.closed, f"branch {branch.path} is closed"
        assert block.num_tokens == len(ids) == len(positions), "KV, ids and positions of the same tokens"
        self._check_ids(ids)
        slab = branch.slab
        self.pool.check_fits(slab.num_slots + len(ids), "the request with these tokens")
        graft = Branch(f"{branch.path}+{slab.num_branches}", slab, slab.add_branch(), closed=True)
        graft.append_at(ids, positions)
        tenant = self._requests[slab]
        tenant.branches.append(graft)
        tenant.imports[graft] = block
        branch.join([graft], first=len(branch.tokens))

    def receive(self, branch: Branch, ids: Sequence[int], block: KVBlock | None = None) -> None:
        """``branch``, which is held, has been decoded elsewhere: ``ids`` came next. With ``block``, the KV of all its
        tokens but the last, it is released: only that token is fed here."""
        assert branch.held, f"branch {branch.path} is decoded here"
        assert not branch.num_fed, f"branch {branch.path} has been fed here"
        self.feed(branch, ids)
        if branch.constraint is not None:
            for token in ids:
                branch.constraint.advance(token)
        if block is not None:
            assert block.num_tokens == len(branch.tokens) - 1, "the last token's KV is computed where it is joined"
            self._requests[branch.slab].imports[branch] = block
            self.settle(branch)
            self.release(branch)

    def feed(self, branch: Branch, ids: Sequence[int]) -> None:
        """Append ``ids`` to the branch; they wait for a step. Raises InputError where the request outgrows
        ``max_kv_bytes``."""
        assert not branch.closed, f"branch {branch.path} is closed"
        assert not branch.num_draft, "nothing is known to follow a guess"
        self._check_ids(ids)
        self.pool.check_fits(branch.slab.num_slots + len(ids), "the request with these tokens")
        branch.append(ids)

    def draft(self, branch: Branch, ids: Sequence[int]) -> None:
        """Guess that the branch samples ``ids`` next. The next step feeds them behind the pending token and samples
        behind each as decoding one by one would, with the same random number and mask: what equals the guess is
        accepted, and the first sample that differs takes its place. So several tokens may come of one step, and
        they are those that would have come without a draft, whatever was guessed.

        Speculative decoding is Leviathan et al. 2023 (arXiv 2211.17192). Their acceptance rule keeps the target's
        distribution; this one keeps its very samples, a coupling by common random numbers, which Daliri et al. 2024
        (arXiv 2408.07978) call drafter-invariant. A given guess is accepted with its probability under the target:
        for a drafter without randomness that is Leviathan's rate. For one that samples with the same numbers it is at
        most theirs, 1 − D_TV; Daliri et al. bound it below for Gumbel sampling, not for the inverse of the cumulative
        sum that the sampler uses.

        The guess is cut where the constraint forbids a token, at the model's last position, and where no KV is free:
        nobody is preempted for it.
        """
        assert branch.draftable, f"branch {branch.path} samples nothing behind a draft in the next step"
        room = max(0, self.max_positions - branch.next_position)
        room = self.pool.num_spare(self._requests[branch.slab], self._tenants, room)
        branch.append_draft(allowed(ids[:room], branch.constraint, self.masks, self.vocab_size))

    def recall(self, branch: Branch, tokens: Sequence[int], num_drafted: int = 0) -> StepOutput:
        """Give the branch what a step gave it once, here or elsewhere: what was pending counts as fed, the constraint
        moves on, the last of ``tokens`` is pending. Computes nothing, scores neither: once all is recalled,
        :meth:`feed_again`."""
        assert branch.decoding, f"branch {branch.path} samples nothing"
        self._check_ids(tokens)
        branch.append_draft(tokens[:-1])
        branch.mark_fed(branch.num_pending)
        accepted = accept(branch, tokens)
        return StepOutput(branch, accepted, (None,) * len(accepted), num_drafted, None)

    def feed_again(self, branch: Branch) -> None:
        """Everything that the branch's request has been fed waits to be fed again, each token with the sight that it
        had; only then its branches go on. What a branch that samples no more has pending counts as fed."""
        tenant = self._requests[branch.slab]
        for other in tenant.branches:
            if not other.decoding and not other.held:
                other.mark_fed(other.num_pending)
        tenant.preempt()

    def rewind(self, branch: Branch, num_tokens: int) -> None:
        """Forget all of the branch's tokens but the first ``num_tokens``; their slots are used again."""
        assert not branch.closed, f"branch {branch.path} is closed"
        branch.rewind(num_tokens)

    def hold(self, branch: Branch) -> None:
        """Keep the branch's tokens that have never been fed out of every step until ``release``."""
        branch.held = True

    def release(self, branch: Branch) -> None:
        branch.held = False

    def settle(self, branch: Branch) -> None:
        """Sample nothing more for the branch until ``resume``; what is pending is still fed."""
        branch.settled = True

    def resume(self, branch: Branch) -> None:
        branch.settled = False

    def close(self, branch: Branch) -> None:
        """The branch takes no further part; its tokens that were never fed are dropped and seen by nobody. What was
        fed stays visible to those who see it, and it may still be joined."""
        branch.rewind(branch.num_computed)
        branch.closed = True

    def free(self, branch: Branch) -> None:
        """End the branch's request, also in mid-decode: close all its branches and release every slot."""
        tenant = self._requests.pop(branch.slab, None)
        if tenant is None:
            return
        for other in tenant.branches:
            other.closed = True
        if tenant.slab.resident:
            self.prefixes.keep(tenant)
        self.prefixes.end(tenant)
        tenant.slab.release()

    def step(self) -> list[StepOutput]:
        """One forward pass over everything that waits and has room; no outputs where nothing does.

        Raises InputError, before anything is fed, where a request has outgrown ``max_kv_bytes`` by what it sampled: it
        must be freed, and all others can go on.
        """
        with torch.inference_mode():
            for tenant in self.pool.make_room(self._tenants):
                self.prefixes.load(tenant)
            for tenant in self._tenants:
                if tenant.imports and tenant.slab.resident:
                    tenant.load_imports()
            batch = self.scheduler.schedule(self._resident_branches)
            if not batch:
                return []
            self._num_steps += 1
            self._num_rows += sum(feed.num_tokens for feeds in batch for feed in feeds)
            fed = [self._requests[feeds[0].branch.slab] for feeds in batch]
            reading = [tenant for tenant in fed if tenant.main.num_fed < tenant.num_prompt]
            outputs = commit(batch, self.runner.run(batch), self.masks)
            for tenant in reading:
                if tenant.main.num_fed >= tenant.num_prompt:
                    self.prefixes.keep(tenant)  # a whole prompt: others that start with it find it from now on
            return outputs

    def check_integrity(self) -> None:
        """Raises AssertionError where what the engine has written down does not agree with itself."""
        self.pool.check_integrity(self._tenants)
        self.prefixes.check_integrity(self._tenants)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise InputError(f"token ids go from {min(ids)} to {max(ids)}; allowed: 0 to {self.vocab_size - 1}")
