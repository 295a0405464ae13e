"""A document through the engine's primitives, token by token as decoding does it, with the logits of every token.

What decoding computes must equal one forward pass with the layout; this is the engine's side of that equation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.commit import StepOutput
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.messages import MAIN_BRANCH
from pasta_ray.errors import InputError
from pasta_ray.lang.document import Document
from pasta_ray.lang.tags import TagMap
from pasta_ray.lang.tokens import TokenDocument, TokenPromise, TokenSync, encode_document


def replay(engine: Engine, prompt_ids: Sequence[int], document: Document) -> torch.Tensor:
    """Logits, float32 [num_tokens, vocab], after every token of the layout of prompt and document, in layout order.

    Raises InputError where the model has no tags.
    """
    if not isinstance(engine.tags, TagMap):
        raise InputError(
            f"model {engine.config.model!r} has no PASTA tags; give an adapter or checkpoint with a pasta.json"
        )
    return replay_tokens(engine, prompt_ids, encode_document(document, engine.tokenizer, engine.tags))


def replay_tokens(engine: Engine, prompt_ids: Sequence[int], document: TokenDocument) -> torch.Tensor:
    """As :func:`replay`, for a document in token form.

    Other requests of the engine go on in the same steps; what these give them is not handed to anybody.
    """
    run = _Replay(engine, prompt_ids, document)
    try:
        while not run.done:
            run.before_step()
            run.after_step(engine.step())
        return run.logits
    finally:
        engine.free(run.main.branch)


@dataclass(eq=False)
class _Script:
    """What is left to feed to one branch: pairs of token and layout index; ``fed`` are the indices of those given to
    the engine whose logits have not come back."""

    branch: Branch
    tokens: list[tuple[int, int]]
    fed: list[int] = field(default_factory=list)

    def next_token(self) -> tuple[int, int]:
        token, index = self.tokens.pop(0)
        self.fed.append(index)
        return token, index


class _Replay:
    def __init__(self, engine: Engine, prompt_ids: Sequence[int], document: TokenDocument) -> None:
        self.engine = engine
        self.logits = torch.zeros((len(prompt_ids) + len(document.ids), engine.vocab_size))
        self.promises: dict[int, tuple[TokenPromise, int]] = {}  # by layout index of their last head token
        self.syncs: set[int] = set()
        main = self._read(document, len(prompt_ids))
        branch = engine.open(prompt_ids, keep_logits=True)
        self.main = _Script(branch, main, list(range(len(prompt_ids))))
        self.bodies: list[_Script] = []
        self.open_bodies: list[_Script] = []

    def _read(self, document: TokenDocument, index: int) -> list[tuple[int, int]]:
        """The main branch's tokens with their layout indices, noting where to fork and to join."""
        main: list[tuple[int, int]] = []
        for node in document.nodes:
            if isinstance(node, TokenPromise):
                ids, length = node.head, len(node.head) + len(node.body)
                self.promises[index + len(ids) - 1] = (node, index + len(ids))
            elif isinstance(node, TokenSync):
                ids, length = (node.id,), 1
                self.syncs.add(index)
            else:
                ids, length = node.ids, len(node.ids)
            main += [(token, index + offset) for offset, token in enumerate(ids)]
            index += length
        return main

    @property
    def done(self) -> bool:
        return not any(script.tokens or script.fed for script in (self.main, *self.bodies))

    def before_step(self) -> None:
        """Give every branch that has nothing pending its next token, and act on tags as an interpreter does."""
        for script in self.bodies:
            if script.tokens and not script.branch.num_pending:
                self.engine.feed(script.branch, [script.next_token()[0]])
        if self.main.tokens and not self.main.branch.num_pending:
            token, index = self.main.next_token()
            self.engine.feed(self.main.branch, [token])
            if index in self.promises:
                self._fork(*self.promises[index])
            elif index in self.syncs:
                self.engine.hold(self.main.branch)
        if self.main.branch.held and not any(script.tokens for script in self.open_bodies):
            self.engine.join(self.main.branch, [script.branch for script in self.open_bodies])
            self.engine.release(self.main.branch)
            self.open_bodies = []

    def _fork(self, promise: TokenPromise, index: int) -> None:
        path = f"{MAIN_BRANCH}.{len(self.bodies)}"
        forced = promise.body[:1]
        branch = self.engine.fork(self.main.branch, forced, path=path, gap=promise.gap, keep_logits=True)
        rest = [(token, index + offset) for offset, token in enumerate(promise.body)][1:]
        self.bodies.append(_Script(branch, rest, [index]))
        self.open_bodies.append(self.bodies[-1])

    def after_step(self, outputs: Sequence[StepOutput]) -> None:
        scripts = {script.branch: script for script in (self.main, *self.bodies)}
        for output in outputs:
            script = scripts.get(output.branch)
            if script is not None and output.logits is not None:
                count = len(output.logits)
                self.logits[script.fed[:count]] = output.logits.cpu()
                del script.fed[:count]
