"""KV of token sequences that came before, in a radix tree: what requests share is computed once.

Axes: H KV head, N token, D head dimension.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

KV = Sequence[torch.Tensor]  # one [H, N, D] tensor a layer


@dataclass(eq=False)
class Node:
    """A run of tokens behind its parent's. Children are keyed by their first token. ``last_used`` is the cache's clock
    at the latest use of this node or of one below it; ``num_pins`` are the leases that end here."""

    ids: tuple[int, ...] = ()
    keys: KV = ()
    values: KV = ()
    parent: "Node | None" = None
    children: dict[int, "Node"] = field(default_factory=dict)
    last_used: int = 0
    num_pins: int = 0

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


@dataclass(eq=False)
class Lease:
    """A prefix of ``num_tokens`` that stays in the cache until it is released."""

    node: Node
    num_tokens: int

    def runs(self) -> list[Node]:
        """The prefix in pieces, in order."""
        path, node = [], self.node
        while node.parent is not None:
            path.append(node)
            node = node.parent
        return path[::-1]


class PrefixCache:
    """At most ``max_bytes`` of keys and values. What was used least recently goes first, from the leaves inwards; a
    pinned node and all above it stay, since only leaves go."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.version = 0  # another one whenever something has come or gone
        self.root = Node()
        self._clock = 0

    @property
    def num_pins(self) -> int:
        """Leases that have not been released."""
        return self.root.num_pins + sum(node.num_pins for node in self._nodes())

    def match(self, ids: Sequence[int]) -> Lease:
        """The longest prefix of ``ids`` that is there, pinned."""
        node, num_tokens = self._walk(ids)
        node.num_pins += 1
        return Lease(node, num_tokens)

    def release(self, lease: Lease) -> None:
        """End a lease; once."""
        assert lease.node.num_pins > 0, "a lease is released once"
        lease.node.num_pins -= 1

    def insert(self, ids: Sequence[int], keys: KV, values: KV, first: int = 0) -> None:
        """Keep a copy of the KV of ``ids[first:]``, [H, len(ids) - first, D] a layer: of what is not there, the start
        that room can be made for. Nothing where the tokens before ``first`` are not there."""
        node, start = self._walk(ids)
        if not first <= start < len(ids):
            return
        token_bytes = sum(tensor.nbytes for tensor in (*keys, *values)) // (len(ids) - first)
        wanted = min(len(ids) - start, self.max_bytes // token_bytes)
        node.num_pins += 1  # what is being extended must not go to make room
        self._make_room(wanted * token_bytes)
        node.num_pins -= 1
        stop = start + min(wanted, (self.max_bytes - self.num_bytes) // token_bytes)
        if stop > start:
            part = slice(start - first, stop - first)
            leaf = Node(tuple(ids[start:stop]), _copy(keys, part), _copy(values, part), node, last_used=self._clock)
            node.children[ids[start]] = leaf
            self.num_bytes += leaf.num_bytes
            self.version += 1

    def check_integrity(self) -> None:
        """Raises AssertionError where the tree, its bytes or its order of use are wrong."""
        nodes = list(self._nodes())
        assert self.num_bytes == sum(node.num_bytes for node in nodes), "the bytes do not add up"
        assert self.num_bytes <= self.max_bytes, f"{self.num_bytes} bytes of {self.max_bytes}"
        assert self.root.num_pins >= 0
        for node in nodes:
            assert node.ids, "an empty node"
            assert all(tensor.shape[1] == len(node.ids) for tensor in (*node.keys, *node.values))
            assert node.num_pins >= 0
            assert node.parent is not None
            assert node.parent.children[node.ids[0]] is node, "a node that its parent does not know"
            assert node.parent is self.root or node.parent.last_used >= node.last_used, "used later than its parent"
            assert node.last_used <= self._clock

    def _walk(self, ids: Sequence[int]) -> tuple[Node, int]:
        """The node that ends the longest cached prefix of ``ids``, and its length; marks the path as used, and splits
        a node that agrees in part."""
        self._clock += 1
        node, length = self.root, 0
        while length < len(ids) and (child := node.children.get(ids[length])):
            same = _num_same(child.ids, ids[length : length + len(child.ids)])
            node = child if same == len(child.ids) else self._split(child, same)
            node.last_used = self._clock
            length += same
        return node, length

    def _split(self, node: Node, length: int) -> Node:
        """A new node with the first ``length`` tokens of ``node``, which stays below it with the rest, its pins and its
        children. Both are copies: a view would keep all of the old node's bytes."""
        assert node.parent is not None
        first, rest = slice(None, length), slice(length, None)
        upper = Node(node.ids[first], _copy(node.keys, first), _copy(node.values, first), node.parent)
        node.parent.children[upper.ids[0]] = upper
        node.ids, node.keys, node.values = node.ids[rest], _copy(node.keys, rest), _copy(node.values, rest)
        node.parent = upper
        upper.children[node.ids[0]] = node
        return upper

    def _make_room(self, num_bytes: int) -> None:
        """Drop leaves until ``num_bytes`` fit or every leaf is pinned."""
        while self.num_bytes + num_bytes > self.max_bytes:
            leaves = (node for node in self._nodes() if not node.children and not node.num_pins)
            oldest = min(leaves, key=lambda node: node.last_used, default=None)
            if oldest is None:
                return
            assert oldest.parent is not None
            del oldest.parent.children[oldest.ids[0]]
            self.num_bytes -= oldest.num_bytes
            self.version += 1

    def _nodes(self) -> Iterator[Node]:
        """All but the root."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()


def _copy(kv: KV, part: slice) -> list[torch.Tensor]:
    return [tensor[:, part].clone() for tensor in kv]


def _num_same(some: Sequence[int], others: Sequence[int]) -> int:
    pairs = zip(some, others, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(some), len(others)))
