"""Where a body finishes soonest. Pure: what is known of the replicas goes in, a name comes out."""

from collections.abc import Sequence
from dataclasses import dataclass

from pasta_ray.actors.costs import TransferCost
from pasta_ray.actors.messages import Policy
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.messages import BodyPlan

MARGIN = 0.9
"""A body leaves where it is expected to take less than this share of the time that it takes at home."""


@dataclass(frozen=True)
class View:
    """A replica as others see it: ``rows`` of its next step, and whether it is known that the ``prompt`` of the request
    in question is in its prefix cache."""

    name: str
    curve: StepCurve
    rows: int
    has_prompt: bool = False


@dataclass(frozen=True)
class Placement:
    """``local`` keeps all bodies, ``remote`` sends all of them away, ``auto`` each to where it is done first."""

    policy: Policy
    bytes_per_token: int

    def choose(self, plan: BodyPlan, home: View, peers: Sequence[View], transfer: TransferCost) -> str | None:
        """The peer that the body goes to; None is home."""
        if self.policy == "local" or not peers:
            return None
        away_s = {peer.name: self.away_s(plan, peer, transfer) for peer in peers}
        best = min(away_s, key=lambda name: away_s[name])
        if self.policy == "auto" and away_s[best] >= MARGIN * decode_s(plan.tokens_predicted, home):
            return None
        return best

    def away_s(self, plan: BodyPlan, peer: View, transfer: TransferCost) -> float:
        """Seconds until the body's KV is back from ``peer``: what it sees goes there, it is decoded, and comes back."""
        prompt_s = 0.0
        if not peer.has_prompt:
            prompt_s = min(
                transfer.seconds(plan.num_prompt * self.bytes_per_token), peer.curve.prefill_s(plan.num_prompt)
            )
        there_s = transfer.seconds(plan.num_behind * self.bytes_per_token)
        back_s = transfer.seconds(plan.tokens_predicted * self.bytes_per_token)
        return prompt_s + there_s + decode_s(plan.tokens_predicted, peer) + back_s


def decode_s(num_tokens: int, replica: View) -> float:
    """Seconds of decoding so many tokens as one more row; on a full replica rows take turns."""
    rows, most = replica.rows + 1, max(1, replica.curve.worthwhile_rows())
    return num_tokens * replica.curve.seconds(min(rows, most)) * max(1.0, rows / most)
