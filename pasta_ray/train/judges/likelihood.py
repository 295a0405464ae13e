"""How likely a model holds answers to be: many answers in one forward pass, each blind to the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pasta_ray.lang import Layout
from pasta_ray.lang.layout import Range
from pasta_ray.train.data import Example
from pasta_ray.train.likelihood import Likelihood

Ids = tuple[int, ...]


@dataclass
class Row:
    """One packed row: prompts, each followed by its answers, which all see the prompt and none of each other. An
    answer's tokens are the row's labels; ``answers`` are the answers' indices, in the row's order."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    visible: list[tuple[Range, ...]] = field(default_factory=list)
    label_source: list[int | None] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def add_prompt(self, prompt: Ids) -> Range:
        """Returns where the prompt stands."""
        start = len(self.ids)
        self._add(prompt, 0, ())
        self.label_source += [None] * len(prompt)
        return start, start + len(prompt)

    def add_answer(self, index: int, answer: Ids, prompt: Range) -> None:
        start = len(self.ids)
        self._add(answer, prompt[1] - prompt[0], (prompt,))
        self.label_source += [prompt[1] - 1, *range(start, start + len(answer) - 1)]
        self.answers.append(index)

    def _add(self, ids: Ids, position: int, before: tuple[Range, ...]) -> None:
        start = len(self.ids)
        self.visible += [(*before, (start, start + i + 1)) for i in range(len(ids))]
        self.positions += range(position, position + len(ids))
        self.ids += ids

    @property
    def example(self) -> Example:
        laid_out = Layout(tuple(self.ids), tuple(self.positions), tuple(self.visible), tuple(self.label_source))
        return Example("", laid_out, (0,) * len(self.ids))


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


def answer_log_probs(
    likelihood: Likelihood, pairs: Sequence[tuple[Ids, Ids]], row_tokens: int = 512
) -> list[list[float]]:
    """For each (prompt, answer), the natural log-probability of every token of the answer given all before it."""
    found: list[list[float]] = [[] for _ in pairs]
    rows = list(pack_rows(pairs, row_tokens))
    for row, scores in zip(rows, likelihood([row.example for row in rows]), strict=True):
        values = scores.tolist()
        for index in row.answers:
            length = len(pairs[index][1])
            found[index], values = values[:length], values[length:]
    return found
