"""Tokens of one branch to text as they come, never half of a character."""

from pasta_ray.engine.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """``add`` tokens, get the text that is certain by then; ``flush`` at the end of a stretch gives the rest.

    Only the last few tokens are decoded anew, with enough before them for tokenizers whose text depends on it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # [_context, _given) has been given out and is decoded again as context
        self._given = 0

    def add(self, token: int) -> str:
        self._ids.append(token)
        return self._take(final=False)

    def flush(self) -> str:
        text = self._take(final=True)
        self._ids, self._context, self._given = [], 0, 0
        return text

    def _take(self, *, final: bool) -> str:
        given = self._tokenizer.decode(self._ids[self._context : self._given])
        text = self._tokenizer.decode(self._ids[self._context :])
        if text.endswith(_REPLACEMENT) and not final:
            return ""
        self._context, self._given = self._given, len(self._ids)
        return text[len(given) :]
