"""Names for prefixes: a chain of hashes over blocks of tokens, so that one name stands for all tokens up to its end."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

BLOCK_TOKENS = 32
HASH_BYTES = 16


@dataclass(frozen=True)
class Chain:
    """A prefix that has been hashed up to its last whole block; ``rest`` are the tokens behind that."""

    last: bytes
    rest: tuple[int, ...] = ()

    @classmethod
    def of(cls, key: str) -> "Chain":
        """The empty prefix. ``key`` says whose KV it is: with another key no two names are equal."""
        return cls(blake2b(key.encode(), digest_size=HASH_BYTES).digest())

    def extended(self, ids: Sequence[int]) -> "tuple[Chain, list[bytes]]":
        """The chain with ``ids`` behind it, and the names of the blocks that they complete."""
        last, tokens, names = self.last, (*self.rest, *ids), []
        whole = len(tokens) - len(tokens) % BLOCK_TOKENS
        for start in range(0, whole, BLOCK_TOKENS):
            block = array("q", tokens[start : start + BLOCK_TOKENS]).tobytes()
            last = blake2b(last + block, digest_size=HASH_BYTES).digest()
            names.append(last)
        return Chain(last, tokens[whole:]), names


def block_names(key: str, ids: Sequence[int]) -> list[bytes]:
    """One name for each whole block of ``ids``, in order."""
    return Chain.of(key).extended(ids)[1]
