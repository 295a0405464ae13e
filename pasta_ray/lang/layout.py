"""The layout: which token sees which, at what position, predicted from where. One rule for training and decoding.

Computed from token counts alone. What a torch program needs (mask, position ids, labels) it builds from here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pasta_ray.lang.tokens import TokenDocument, TokenPromise, TokenSync

Range = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """A prompt and a document, token by token in linear order; every tuple has one entry a token.

    ``visible[i]`` are the half-open ranges of tokens that token ``i`` attends to, ascending, itself included.
    ``label_source[i]`` is the token whose logits predict token ``i``; None for prompt and forced tokens.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    visible: tuple[tuple[Range, ...], ...]
    label_source: tuple[int | None, ...]

    def sees(self, token: int, other: int) -> bool:
        """Whether ``token`` attends to ``other``."""
        return any(start <= other < end for start, end in self.visible[token])


def layout(document: TokenDocument, prompt_ids: Sequence[int] = ()) -> Layout:
    """The layout of ``prompt_ids`` followed by ``document``."""
    build = _Builder()
    build.main(prompt_ids, labelled=False)
    for node in document.nodes:
        if isinstance(node, TokenPromise):
            build.main(node.head)
            build.body(node.body, node.gap)
        elif isinstance(node, TokenSync):
            build.join()
            build.main((node.id,))
        else:
            build.main(node.ids)
    return Layout(tuple(build.ids), tuple(build.positions), tuple(build.visible), tuple(build.label_source))


@dataclass
class _Builder:
    """Walks a document once. ``seen``: what the main branch sees; ``open_bodies``: what its next sync will add."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    visible: list[tuple[Range, ...]] = field(default_factory=list)
    label_source: list[int | None] = field(default_factory=list)
    seen: tuple[Range, ...] = ()
    open_bodies: tuple[Range, ...] = ()
    next_position: int = 0
    last_main: int | None = None

    def main(self, ids: Sequence[int], *, labelled: bool = True) -> None:
        for token in ids:
            index = self._append(token, self.next_position, self.last_main if labelled else None)
            self.seen = merge((*self.seen, (index, index + 1)))
            self.visible.append(self.seen)
            self.next_position += 1
            self.last_main = index

    def body(self, ids: Sequence[int], gap: int) -> None:
        start = len(self.ids)
        for offset, token in enumerate(ids):
            index = self._append(token, self.next_position + offset, start + offset - 1 if offset else None)
            self.visible.append(merge((*self.seen, (start, index + 1))))
        self.open_bodies += ((start, len(self.ids)),)
        self.next_position += gap

    def join(self) -> None:
        self.seen = merge((*self.seen, *self.open_bodies))
        self.open_bodies = ()

    def _append(self, token: int, position: int, source: int | None) -> int:
        self.ids.append(token)
        self.positions.append(position)
        self.label_source.append(source)
        return len(self.ids) - 1


def merge(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Half-open ranges in ascending order, those that touch made one."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and merged[-1][1] >= start:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
