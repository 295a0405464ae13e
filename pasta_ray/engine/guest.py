"""A body decoded away from its home: what travels there, how it is decoded there, and what comes back.

At home the body has its branch as always, only held: the tokens that come back are appended to it, and at the end their
KV. So a join finds it as if it had been decoded here, and what has come so far is not lost if the other place is.
"""

from collections.abc import Sequence
from typing import Protocol

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.commit import StepOutput
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.messages import BodyNews, BodyPlan, BodyRequest, Context, Event
from pasta_ray.engine.moving import take_kv
from pasta_ray.engine.progress import Step
from pasta_ray.errors import InputError
from pasta_ray.lang import TagMap
from pasta_ray.lang.grammar import BodyGrammar


class Farm(Protocol):
    """Where bodies may go. Called in the thread that decodes."""

    def choose(self, plan: BodyPlan) -> str | None:
        """The replica that would finish the body soonest, None for the one that it is on."""

    def send(self, replica: str, body: BodyRequest) -> None:
        """Have the body decoded there; its tokens come back by `Decoder.receive`, or that it was lost."""

    def end(self, request_id: str) -> None:
        """No body of this request is wanted any more."""


def may_leave(engine: Engine, child: Branch) -> bool:
    """Whether what ``child`` sees of its parent is in KV, but for the parent's last token."""
    parent = child.parent
    if parent is None or not child.slab.resident:
        return False
    return parent.num_pending == 1 and parent.num_fed >= engine.tenant(child).num_prompt


def context_of(engine: Engine, child: Branch) -> Context | None:
    """What ``child``, which has just been forked, sees beside itself; None where not all of it is in KV now."""
    parent, slab = child.parent, child.slab
    if parent is None or not may_leave(engine, child):
        return None
    tenant = engine.tenant(child)
    seen_S = child.visible.copy()
    for apart in (child.slots, tenant.main.slots[: tenant.num_prompt], parent.slots[-1:]):
        seen_S[apart] = False
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for branch in tenant.branches:
        seen = [index for index, slot in enumerate(branch.slots) if seen_S[slot]]
        if seen and seen[-1] >= branch.num_fed:
            return None
        ids += [branch.tokens[index] for index in seen]
        positions += [branch.positions[index] for index in seen]
        slots += [branch.slots[index] for index in seen]
    prompt_ids = tuple(tenant.main.tokens[: tenant.num_prompt])
    return Context(
        prompt_ids, tuple(ids), tuple(positions), take_kv(slab, slots), parent.tokens[-1], parent.positions[-1]
    )


def open_body(engine: Engine, body: BodyRequest, *, keep_logits: bool = False) -> Branch:
    """The body's branch, on an engine that is not its home; its prompt comes from the prefix cache where that has it.

    Raises InputError where there is no room for it.
    """
    context = body.context
    main = engine.open(context.prompt_ids)
    try:
        if context.ids:
            engine.graft(main, context.ids, context.positions, context.block)
        main.next_position = context.last_position
        engine.feed(main, [context.last_id])
        return engine.fork(
            main,
            body.forced,
            path=body.path,
            sampling=body.sampling,
            constraint=BodyGrammar(body.budget),
            keep_logits=keep_logits,
        )
    except InputError:
        engine.free(main)
        raise


class GuestRun:
    """A body of another replica's request, decoded here up to its end."""

    def __init__(self, engine: Engine, body: BodyRequest) -> None:
        assert isinstance(engine.tags, TagMap), "bodies are PASTA's"
        self.id = body.id
        self.done = False
        self._engine, self._end = engine, engine.tags.async_end
        self._branch = open_body(engine, body)
        self.slab = self._branch.slab

    @property
    def branches(self) -> list[Branch]:
        return [self._branch]

    @property
    def stalled(self) -> bool:
        return False

    def drafting(self) -> dict[Branch, int]:
        return {}

    def take_arrived(self) -> list[StepOutput]:
        return []

    def take_steps(self) -> tuple[Step, ...]:
        return ()

    def react(self, outputs: Sequence[StepOutput]) -> list[Event]:
        """The body's new tokens; with the last one, the KV of all before it."""
        branch = self._branch
        tokens = tuple(token for output in outputs if output.branch is branch for token in output.tokens)
        if not tokens:
            return []
        block: KVBlock | None = None
        if tokens[-1] == self._end:
            block = take_kv(self.slab, branch.slots[:-1])
            self.cancel()
        return [BodyNews(tokens, block)]

    def cancel(self) -> None:
        self.done = True
        self._engine.free(self._branch)
