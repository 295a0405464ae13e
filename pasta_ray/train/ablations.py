"""Documents with a part of their annotation left out: what that part is worth shows in what the model then learns."""

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from pasta_ray.lang import Document, Promise, Sync
from pasta_ray.train.data import Record

Part = Literal["topics", "syncs"]

NO_TOPIC = "part"  # the grammar wants a word; one that all promises have tells their bodies nothing


def without(document: Document, parts: Collection[Part]) -> Document:
    """``topics``: every promise gets the same one. ``syncs``: only the one that every answer's end implies is left."""
    nodes = [node for node in document.nodes if not ("syncs" in parts and isinstance(node, Sync))]
    if "topics" in parts:
        nodes = [replace(node, topic=NO_TOPIC) if isinstance(node, Promise) else node for node in nodes]
    return Document(tuple(nodes))


def ablate(record: Record, parts: Collection[Part]) -> Record:
    """Raises InputError for a document that does not parse."""
    if not parts:
        return record
    return record.model_copy(update={"document": without(record.parsed(), parts).linear()})
