"""The six tag tokens, and their ids in one model's vocabulary."""

import json
from dataclasses import astuple, dataclass
from pathlib import Path

from pasta_ray.errors import ModelError

TAG_NAMES = ("<|promise|>", "<|tokens|>", "<|/promise|>", "<|async|>", "<|/async|>", "<|sync|>")
TAG_FILE = "pasta.json"


@dataclass(frozen=True)
class TagMap:
    """Token ids of the six tags, in the order of :data:`TAG_NAMES`.

    A promise is ``promise T tokens N/10 promise_end``; its body stands between ``async_`` and ``async_end``.
    """

    promise: int
    tokens: int
    promise_end: int
    async_: int
    async_end: int
    sync: int

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(TAG_NAMES) or min(self.ids) < 0:
            raise ModelError(f"tag ids are {list(self.ids)}; allowed: six different non-negative ids")

    @property
    def ids(self) -> tuple[int, ...]:
        return astuple(self)

    @classmethod
    def after(cls, vocab_size: int) -> "TagMap":
        """The tags as six new tokens behind a vocabulary of ``vocab_size``."""
        return cls(*range(vocab_size, vocab_size + len(TAG_NAMES)))

    @classmethod
    def load(cls, folder: Path) -> "TagMap":
        """Read ``pasta.json`` of a checkpoint or adapter. Raises ModelError where it is missing or malformed."""
        path = folder / TAG_FILE
        try:
            tags = json.loads(path.read_text(encoding="utf-8"))["tags"]
            return cls(*(int(tags[name]) for name in TAG_NAMES))
        except FileNotFoundError:
            raise ModelError(
                f"{path}: no such file; a checkpoint that writes PASTA-LANG carries its tag map there"
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f'{path}: expected {{"tags": {{name: id}}}} with {", ".join(TAG_NAMES)}: {error}'
            ) from error

    def save(self, folder: Path) -> None:
        tags = dict(zip(TAG_NAMES, self.ids, strict=True))
        (folder / TAG_FILE).write_text(json.dumps({"version": 1, "tags": tags}, indent=2) + "\n", encoding="utf-8")
