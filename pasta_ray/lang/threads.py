"""APAR's answers in tokens (Liu et al. 2024, arXiv 2401.06761): a tree of threads, and its layout for training."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pasta_ray.lang.apar import ControlMap
from pasta_ray.lang.layout import Layout, Range, merge


@dataclass(frozen=True)
class Thread:
    """Token ids in order, its last an end token; a thread among them is forked there, behind a fork token."""

    parts: tuple["int | Thread", ...]


def thread_layout(main: Thread, controls: ControlMap, prompt_ids: Sequence[int] = ()) -> Layout:
    """The layout of ``prompt_ids`` followed by ``main``, each forked thread right behind its fork token.

    A forked thread starts with a forced child token at the position after the fork token, sees its parent's path up
    to the fork, and is seen by nobody else; the parent goes on at that same position. Nothing is ever joined.
    """
    build = _Builder(controls)
    build.thread((*prompt_ids, *main.parts), num_forced=len(prompt_ids))
    return Layout(tuple(build.ids), tuple(build.positions), tuple(build.visible), tuple(build.label_source))


@dataclass
class _Builder:
    controls: ControlMap
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    visible: list[tuple[Range, ...]] = field(default_factory=list)
    label_source: list[int | None] = field(default_factory=list)

    def thread(
        self, parts: Sequence[int | Thread], num_forced: int, seen: tuple[Range, ...] = (), position: int = 0
    ) -> None:
        source: int | None = None
        for part in parts:
            token = self.controls.fork if isinstance(part, Thread) else part
            index = len(self.ids)
            seen = merge((*seen, (index, index + 1)))
            self.ids.append(token)
            self.positions.append(position)
            self.visible.append(seen)
            self.label_source.append(None if num_forced > 0 else source)
            source, position, num_forced = index, position + 1, num_forced - 1
            if isinstance(part, Thread):
                self.thread((self.controls.child, *part.parts), 1, seen, position)
