"""PASTA-LANG: grammar, parser, token form and layout. Pure Python: neither torch nor ray (see GRAMMAR.md)."""

from pasta_ray.lang.apar import CONTROL_NAMES, ControlMap
from pasta_ray.lang.document import Document, DocumentError, Promise, Sync, Text
from pasta_ray.lang.layout import Layout, layout
from pasta_ray.lang.lexer import PastaSyntaxError
from pasta_ray.lang.ordered import OrderedText
from pasta_ray.lang.parser import Parser, parse
from pasta_ray.lang.positions import PRED_1X, PRED_10X, PositionStrategy
from pasta_ray.lang.stops import StopText
from pasta_ray.lang.tags import TAG_NAMES, TagMap, TokenMap
from pasta_ray.lang.threads import Thread, thread_layout
from pasta_ray.lang.tokens import (
    TokenDocument,
    TokenFormError,
    TokenPromise,
    TokenSync,
    TokenText,
    decode_document,
    encode_document,
    read_tokens,
)

__all__ = [
    "CONTROL_NAMES",
    "PRED_1X",
    "PRED_10X",
    "TAG_NAMES",
    "ControlMap",
    "Document",
    "DocumentError",
    "Layout",
    "OrderedText",
    "Parser",
    "PastaSyntaxError",
    "PositionStrategy",
    "Promise",
    "StopText",
    "Sync",
    "TagMap",
    "Text",
    "Thread",
    "TokenDocument",
    "TokenFormError",
    "TokenMap",
    "TokenPromise",
    "TokenSync",
    "TokenText",
    "decode_document",
    "encode_document",
    "layout",
    "parse",
    "read_tokens",
    "thread_layout",
]
