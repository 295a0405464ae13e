"""Where and when a forked body is decoded: here and at once, here and later, or on another replica."""

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.gate import RowGate
from pasta_ray.engine.guest import Farm, context_of, may_leave
from pasta_ray.engine.messages import BodyPlan, BodyRequest, Request
from pasta_ray.lang.grammar import body_budget


class Starter:
    """One engine's. Without a ``farm`` nothing leaves, without a ``curve`` nothing waits."""

    def __init__(self, engine: Engine, curve: StepCurve | None) -> None:
        self.farm: Farm | None = None
        self.gate = RowGate(engine, lambda: curve.worthwhile_rows() if curve is not None else 0)
        self._engine = engine

    def start(self, request: Request, body: Branch, tokens_predicted: int) -> str | None:
        """Decode ``body``, which has just been forked. Gives the replica that it has left for, where it has."""
        replica = self._leave(request, body, tokens_predicted)
        if replica is None:
            self.gate.enter(body)
        else:
            self._engine.hold(body)
        return replica

    def end(self, request_id: str) -> None:
        """The request has ended, and with it all its bodies."""
        if self.farm is not None:
            self.farm.end(request_id)

    def _leave(self, request: Request, body: Branch, tokens_predicted: int) -> str | None:
        scored = request.sampling.logprobs is not None  # scores stay where the logits are
        if self.farm is None or scored or request.method != "pasta" or not request.constrained:
            return None
        if not may_leave(self._engine, body):
            return None
        num_prompt, num_seen = len(request.prompt_ids), int(body.visible.sum()) - len(body.tokens)
        plan = BodyPlan(request.id, body.path, request.model, tokens_predicted, num_prompt, num_seen - num_prompt)
        replica = self.farm.choose(plan)
        context = None if replica is None else context_of(self._engine, body)
        if replica is None or context is None:
            return None
        budget = min(body_budget(tokens_predicted), request.max_tokens + 2)  # home ends before that is reached
        forced = tuple(body.tokens)
        self.farm.send(
            replica,
            BodyRequest(request.id, body.path, request.model, context, forced, budget, request.sampling, request.trace),
        )
        return replica
