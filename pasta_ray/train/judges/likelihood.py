"""How likely a model holds answers to be: many answers in one forward pass, each blind to the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """Where an answer stands in a row: tokens ``[start, start + length)``, the first predicted by token ``source``."""

    index: int
    start: int
    length: int
    source: int


@dataclass
class Row:
    """One packed row: prompts, each followed by its answers, which all see the prompt and none of each other. Each
    token sees the half-open ranges of tokens in its entry of ``seen``."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    seen: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def add_prompt(self, prompt: Ids) -> tuple[int, int]:
        """Returns where the prompt stands."""
        start = len(self.ids)
        self._add(prompt, 0, ())
        return start, start + len(prompt)

    def add_answer(self, index: int, answer: Ids, prompt: tuple[int, int]) -> None:
        self.spans.append(Span(index, len(self.ids), len(answer), prompt[1] - 1))
        self._add(answer, prompt[1] - prompt[0], (prompt,))

    def _add(self, ids: Ids, position: int, before: tuple[tuple[int, int], ...]) -> None:
        start = len(self.ids)
        self.seen += [(*before, (start, start + i + 1)) for i in range(len(ids))]
        self.positions += range(position, position + len(ids))
        self.ids += ids

    def mask(self) -> torch.Tensor:
        """Bool [T, T]: True where a token (row) sees another (column)."""
        mask = torch.zeros(len(self.ids), len(self.ids), dtype=torch.bool)
        for token, ranges in enumerate(self.seen):
            for first, last in ranges:
                mask[token, first:last] = True
        return mask


def pack_rows(pairs: Sequence[tuple[Ids, Ids]], row_tokens: int) -> Iterator[Row]:
    """Rows of up to ``row_tokens`` tokens, or of one longer pair. A row holds each of its prompts once; empty answers
    are in none."""
    by_prompt: dict[Ids, list[int]] = {}
    for index, (prompt, answer) in enumerate(pairs):
        assert prompt, "nothing predicts an answer's first token"
        if answer:
            by_prompt.setdefault(prompt, []).append(index)
    row = Row()
    for prompt, indices in by_prompt.items():
        place: tuple[int, int] | None = None
        for index in indices:
            answer = pairs[index][1]
            needed = len(answer) + (0 if place else len(prompt))
            if row.ids and len(row.ids) + needed > row_tokens:
                yield row
                row, place = Row(), None
            place = place or row.add_prompt(prompt)
            row.add_answer(index, answer, place)
    if row.ids:
        yield row


class Likelihood:
    """A causal model of transformers. float32 is the fastest on a CPU without bf16 units, and exact."""

    def __init__(self, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self._device = torch.device(device)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self._model = model.eval().to(self._device)

    def log_probs(self, pairs: Sequence[tuple[Ids, Ids]], row_tokens: int = 512) -> list[list[float]]:
        """For each (prompt, answer), the natural log-probability of every token of the answer given all before it."""
        found: list[list[float]] = [[] for _ in pairs]
        for row in pack_rows(pairs, row_tokens):
            values = self._row_log_probs(row)
            for span in row.spans:
                found[span.index], values = values[: span.length], values[span.length :]
        return found

    @torch.inference_mode()
    def _row_log_probs(self, row: Row) -> list[float]:
        """Of the tokens of all spans, one span after the other."""
        hidden = self._hidden(row)
        sources, labels = [], []
        for span in row.spans:
            sources += [span.source, *range(span.start, span.start + span.length - 1)]
            labels += row.ids[span.start : span.start + span.length]
        logits = self._model.get_output_embeddings()(hidden[sources]).float()
        picked = logits.gather(1, torch.tensor(labels, device=self._device)[:, None])[:, 0]
        values: list[float] = (picked - logits.logsumexp(dim=-1)).tolist()
        return values

    def _hidden(self, row: Row) -> torch.Tensor:
        """The last layer's output, [T, hidden]."""
        dtype = self._model.dtype
        bias = torch.zeros(len(row.ids), len(row.ids), dtype=dtype).masked_fill(~row.mask(), torch.finfo(dtype).min)
        output = self._model.get_decoder()(
            input_ids=torch.tensor([row.ids], device=self._device),
            attention_mask=bias[None, None].to(self._device),
            position_ids=torch.tensor([row.positions], device=self._device),
            use_cache=False,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden
