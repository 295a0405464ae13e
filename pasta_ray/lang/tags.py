"""Tokens that act while decoding, and their ids in one model's vocabulary."""

import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pasta_ray.errors import ModelError

TAG_NAMES = ("<|promise|>", "<|tokens|>", "<|/promise|>", "<|async|>", "<|/async|>", "<|sync|>")


@dataclass(frozen=True)
class TokenMap:
    """Token ids, one field a token, in the order of ``names``; a checkpoint or adapter carries them in ``file``."""

    names: ClassVar[tuple[str, ...]] = ()
    file: ClassVar[str]

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.names) or min(self.ids) < 0:
            raise ModelError(f"tag ids are {list(self.ids)}; allowed: {len(self.names)} different non-negative ids")

    @property
    def ids(self) -> tuple[int, ...]:
        return astuple(self)

    @classmethod
    def after(cls, vocab_size: int) -> Self:
        """New tokens behind a vocabulary of ``vocab_size``."""
        return cls(*range(vocab_size, vocab_size + len(cls.names)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``file`` of a checkpoint or adapter. Raises ModelError where it is missing or malformed."""
        path = folder / cls.file
        try:
            tags: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["tags"]
            return cls(*(int(tags[name]) for name in cls.names))
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; a checkpoint that writes tags carries its tag map there") from None
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f'{path}: expected {{"tags": {{name: id}}}} with {", ".join(cls.names)}: {error}'
            ) from error

    def save(self, folder: Path) -> None:
        tags = dict(zip(self.names, self.ids, strict=True))
        (folder / self.file).write_text(json.dumps({"version": 1, "tags": tags}, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class TagMap(TokenMap):
    """The six tags. A promise is ``promise T tokens N/10 promise_end``, its body ``async_ … async_end``."""

    names = TAG_NAMES
    file = "pasta.json"

    promise: int
    tokens: int
    promise_end: int
    async_: int
    async_end: int
    sync: int
