"""The ``llm`` annotator: a large model marks the parts, as in the paper (arXiv 2502.11517, section 4).

It is told the language and shown demonstrations, and gives the answer back with tags. The answer itself must come back
unchanged: white space around the whole reply is ignored, nothing else. What does not parse, or says something else, is
sent back once with what is wrong. Predicted lengths are filled in here: a language model does not count tokens.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pasta_ray.errors import InputError
from pasta_ray.lang import Document, PastaSyntaxError, Promise, parse
from pasta_ray.lang.document import Node, predicted_tokens
from pasta_ray.train.annotators.base import Annotation, CountTokens
from pasta_ray.train.annotators.llm_prompt import opening_chat
from pasta_ray.train.data import ChatTokenizer
from pasta_ray.train.endpoint import Endpoint, EndpointConfig, EndpointError, Usage
from pasta_ray.train.pairs import Pair

EXCERPT = 40  # characters shown of a text that differs


@dataclass(frozen=True)
class LlmConfig:
    """``num_attempts``: replies to a pair at most, the first included."""

    endpoint: EndpointConfig
    num_attempts: int = 2
    name: ClassVar[str] = "llm"

    def __post_init__(self) -> None:
        if self.num_attempts < 1:
            raise InputError(f"num_attempts is {self.num_attempts}; allowed: 1 or more")

    @property
    def batch_size(self) -> int:
        """Enough to keep all connections busy but for a batch's last replies."""
        return 4 * self.endpoint.concurrency

    def load(self, _model: Path, tokenizer: ChatTokenizer, /) -> "LlmAnnotator":
        return LlmAnnotator(self, lambda text: len(tokenizer.encode(text)))


class LlmAnnotator:
    def __init__(self, config: LlmConfig, count_tokens: CountTokens) -> None:
        self._config = config
        self._count_tokens = count_tokens
        self._was_answered = False

    def annotate(self, pairs: Sequence[Pair]) -> list[Annotation]:
        """Raises EndpointError where nothing can work: of all pairs none was answered, and either no earlier one was,
        or the endpoint is gone."""
        outcomes = asyncio.run(self._annotate_all(pairs))
        failures = [outcome for outcome in outcomes if isinstance(outcome, EndpointError)]
        if failures and len(failures) == len(pairs) and (failures[0].hopeless or not self._was_answered):
            raise failures[0]
        self._was_answered |= len(failures) < len(pairs)
        return [
            Annotation(reason=outcome.reason, detail=outcome.detail) if isinstance(outcome, EndpointError) else outcome
            for outcome in outcomes
        ]

    async def _annotate_all(self, pairs: Sequence[Pair]) -> list[Annotation | EndpointError]:
        async with Endpoint(self._config.endpoint) as endpoint:
            return await asyncio.gather(*(self._annotate(endpoint, pair) for pair in pairs))

    async def _annotate(self, endpoint: Endpoint, pair: Pair) -> Annotation | EndpointError:
        instruction = "\n\n".join(filter(None, (pair.system, pair.instruction, pair.input)))
        chat = opening_chat(instruction, pair.output)
        max_tokens = 2 * self._count_tokens(pair.output) + 256  # a reply that runs away is paid for, too
        usage = Usage()
        annotation = Annotation(reason="never asked")
        for _ in range(self._config.num_attempts):
            try:
                reply = await endpoint.complete(chat, max_tokens=max_tokens)
            except EndpointError as error:
                return replace(annotation, usage=usage) if usage.num_requests else error
            usage += reply.usage
            annotation = read_reply(reply.text, pair.output, self._count_tokens)
            if annotation.document is not None:
                break
            if reply.finish_reason == "length":
                annotation = Annotation(reason="the reply is too long", detail=f"cut off at {max_tokens} tokens")
                break
            wrong = f"{annotation.reason}: {annotation.detail}. Reply again with the annotated answer alone."
            chat = [*chat, {"role": "assistant", "content": reply.text}, {"role": "user", "content": wrong}]
        return replace(annotation, usage=usage)


def read_reply(reply: str, answer: str, count_tokens: CountTokens) -> Annotation:
    """The document in a reply, its lengths filled in; ``text()`` is ``answer``. Or what is wrong with it."""
    try:
        document = parse(reply.strip())
    except PastaSyntaxError as error:
        return Annotation(reason="the reply does not parse", detail=str(error))
    text = document.text()
    if text != answer:
        at = next(
            (i for i, (a, b) in enumerate(zip(text, answer, strict=False)) if a != b), min(len(text), len(answer))
        )
        found, wanted = text[at : at + EXCERPT], answer[at : at + EXCERPT]
        return Annotation(
            reason="the reply changes the text", detail=f"at character {at} it says {found!r}, the answer {wanted!r}"
        )
    return Annotation(Document(tuple(_measured(node, count_tokens) for node in document.nodes)))


def _measured(node: Node, count_tokens: CountTokens) -> Node:
    if not isinstance(node, Promise):
        return node
    return Promise(node.topic, predicted_tokens(count_tokens(node.text()) + 2), node.body)
