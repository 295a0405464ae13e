"""Tokens that act while decoding, and their ids in one model's vocabulary."""

import json
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from pasta_ray.errors import InputError, ModelError
from pasta_ray.lang.positions import PRED_10X, PositionStrategy

TAG_NAMES = ("<|promise|>", "<|tokens|>", "<|/promise|>", "<|async|>", "<|/async|>", "<|sync|>")


@dataclass(frozen=True)
class TokenMap:
    """Token ids, one field a token, in the order of ``names``; a checkpoint or adapter carries them in ``file``.

    A subclass may have settings behind its ids, which stand beside them in the file.
    """

    names: ClassVar[tuple[str, ...]] = ()
    file: ClassVar[str]

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.names) or min(self.ids) < 0:
            raise ModelError(f"tag ids are {list(self.ids)}; allowed: {len(self.names)} different non-negative ids")

    @cached_property
    def ids(self) -> tuple[int, ...]:
        return tuple(getattr(self, field.name) for field in fields(self)[: len(self.names)])

    @classmethod
    def after(cls, vocab_size: int) -> Self:
        """New tokens behind a vocabulary of ``vocab_size``."""
        return cls(*range(vocab_size, vocab_size + len(cls.names)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``file`` of a checkpoint or adapter. Raises ModelError where it is missing or malformed."""
        path = folder / cls.file
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(*(int(values["tags"][name]) for name in cls.names), **cls._read_settings(values))
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; a checkpoint that writes tags carries its tag map there") from None
        except InputError as error:
            raise ModelError(f"{path}: {error}") from error
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f'{path}: expected {{"tags": {{name: id}}}} with {", ".join(cls.names)}: {error}'
            ) from error

    def save(self, folder: Path) -> None:
        values = {"version": 1, "tags": dict(zip(self.names, self.ids, strict=True))} | self._write_settings()
        (folder / self.file).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _read_settings(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The file's values to the fields behind the ids. Raises InputError for a value that is not allowed."""
        del values
        return {}

    def _write_settings(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class TagMap(TokenMap):
    """The six tags. A promise is ``promise T tokens N/unit promise_end``, its body ``async_ … async_end``.

    ``positions`` is the strategy that the checkpoint is trained with; a file that names none means Pred-10X.
    """

    names = TAG_NAMES
    file = "pasta.json"

    promise: int
    tokens: int
    promise_end: int
    async_: int
    async_end: int
    sync: int
    positions: PositionStrategy = PRED_10X

    @classmethod
    def after(cls, vocab_size: int, positions: PositionStrategy = PRED_10X) -> Self:
        """New tags behind a vocabulary of ``vocab_size``, for a checkpoint of that position strategy."""
        return replace(super().after(vocab_size), positions=positions)

    @classmethod
    def _read_settings(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {"positions": PositionStrategy.named(values.get("positions", PRED_10X.name))}

    def _write_settings(self) -> dict[str, Any]:
        return {"positions": self.positions.name}
