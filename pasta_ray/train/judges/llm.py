"""The llm judge: a language model behind an OpenAI-compatible endpoint compares two answers.

As in AlpacaEval (Dubois et al. 2024, arXiv 2404.04475) the verdict is weighted by confidence: it is the probability of
the first choice's token against the second's, where the endpoint gives log-probabilities, else 0 or 1. Every pair is
shown in both orders and the two verdicts are averaged, so that liking the first place or a letter changes nothing.
"""

import asyncio
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from pydantic import ValidationError

from pasta_ray.train.endpoint import Completion, Endpoint, EndpointConfig, EndpointError, Usage
from pasta_ray.train.judges.base import Answer, Comparison, Question

TOP_LOGPROBS = 5
MAX_TOKENS = 8  # "Answer A." and the like
SYSTEM = (
    "You compare two answers to the same request, as the person who asked would. You look at whether an answer does"
    " what was asked, is right, is clear, and is as long as it should be. You reply with one letter."
)
TEMPLATE = """Request:
<request>
{question}
</request>

Answer A:
<answer>
{a}
</answer>

Answer B:
<answer>
{b}
</answer>

Which answer is better? Reply with A or B and nothing else."""
_CHOICE = re.compile(r"\W*(?:answer\W+)?([ab])\W*", re.IGNORECASE)


class LlmJudge:
    """``usage`` adds up what its comparisons have cost."""

    counts_wins = False

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.usage = Usage()

    @property
    def name(self) -> str:
        return f"llm:{self.config.model}"

    def compare(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Raises EndpointError where the endpoint cannot be reached, or refuses; a reply without a choice in it is a
        miss. Equal texts are a draw, about which nobody is asked."""
        return asyncio.run(self._compare(comparisons))

    def features(self, question: Question, answer: Answer) -> dict[str, float]:  # noqa: ARG002  # the interface's
        """None: what the model looked at is not known."""
        return {}

    def costs(self) -> dict[str, float]:
        return {
            "requests": self.usage.num_requests,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "cost": self.usage.cost(self.config),
        }

    async def _compare(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        async with Endpoint(self.config) as endpoint:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(_both_orders(endpoint, comparison)) for comparison in comparisons]
            except* EndpointError as errors:
                first = errors.exceptions[0]
                raise first from None
            finally:
                self.usage += endpoint.usage
        return [task.result() for task in tasks]


async def _both_orders(endpoint: Endpoint, comparison: Comparison) -> float | None:
    question, first, second = comparison.question, comparison.first.text.strip(), comparison.second.text.strip()
    if first == second:
        return 0.5
    forth, back = await asyncio.gather(
        _prefers_a(endpoint, question, first, second), _prefers_a(endpoint, question, second, first)
    )
    return None if forth is None or back is None else (forth + 1 - back) / 2


async def _prefers_a(endpoint: Endpoint, question: Question, a: str, b: str) -> float | None:
    text = f"{question.system}\n\n{question.text}" if question.system else question.text
    content = TEMPLATE.format(question=text, a=a, b=b)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    try:
        reply = await endpoint.complete(messages, max_tokens=MAX_TOKENS, top_logprobs=TOP_LOGPROBS)
    except EndpointError as error:
        if isinstance(error.__cause__, ValidationError):
            return None  # an answer that is no completion is as good as one that names no letter
        raise
    return read_choice(reply)


def read_choice(reply: Completion) -> float | None:
    """The probability of A against B; None where the reply names neither."""
    match = _CHOICE.fullmatch(reply.text)
    if match is None:
        return None
    for alternatives in reply.top_logprobs:
        a, b = _mass(alternatives, "a"), _mass(alternatives, "b")
        if a + b > 0.5:  # the token that chooses, and not a word before it
            return a / (a + b)
    return float(match.group(1).lower() == "a")


def _mass(alternatives: Mapping[str, float], letter: str) -> float:
    chosen: Iterable[float] = (
        value for token, value in alternatives.items() if re.sub(r"\W", "", token).lower() == letter
    )
    return sum(map(math.exp, chosen))
