"""Text to token ids and back. Text never becomes a special token or a tag, whatever it says."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError
from transformers import AddedToken, AutoConfig, AutoTokenizer, GenerationConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pasta_ray.errors import InputError, ModelError
from pasta_ray.lang.apar import CONTROL_NAMES
from pasta_ray.lang.stops import unfinished
from pasta_ray.lang.tags import TAG_NAMES, TokenMap

Message = Mapping[str, str]

_REPLACEMENT = "\ufffd"
# Two private-use characters around a number stand for a special token's name in a message while its chat is rendered.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_BYTES = {
    letter: byte for byte, letter in cast(Any, bytes_to_unicode)().items()
}  # as byte-level vocabularies spell them
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # as vocabularies with a fallback to bytes do
_SENTINEL = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class Tokenizer:
    """A model's own tokenizer, made safe for text that comes from outside."""

    def __init__(self, backend: Any, tags: TokenMap | None, stop_ids: tuple[int, ...]) -> None:
        """``backend`` is a tokenizer of transformers. Tags that it knows as plain words become special to it."""
        self._backend = backend
        self.tags = tags
        self.stop_ids = stop_ids
        self._texts: dict[int, str] = {}  # of single tokens, which every step asks for
        self._token_bytes: dict[int, bytes] = {}
        known = {token.content: token for token in backend.added_tokens_decoder.values()}
        plain = [name for name in (*TAG_NAMES, *CONTROL_NAMES) if name in known and not known[name].special]
        if plain:
            backend.add_tokens([AddedToken(name, special=True, normalized=False) for name in plain])
        self._special_ids = {id_: tok.content for id_, tok in backend.added_tokens_decoder.items() if tok.special}
        names = sorted(self._special_ids.values(), key=len, reverse=True)
        self._names = names
        self._special = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._tag_names = dict(zip(tags.ids, tags.names, strict=True)) if tags else {}

    @classmethod
    def load(cls, folder: Path, tags: TokenMap | None) -> "Tokenizer":
        """Raises ModelError where the folder holds no tokenizer."""
        try:
            backend = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, clean_up_tokenization_spaces=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{folder}: no tokenizer can be loaded: {error}") from error
        return cls(backend, tags, _stop_ids(folder, backend))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, tags included."""
        highest = max(self.tags.ids) + 1 if self.tags else 0
        return max(len(self._backend), highest)

    @property
    def vocabulary(self) -> dict[int, str]:
        """The tokens as the model's files name them, by id; tags left out."""
        names = {id_: name for name, id_ in self._backend.get_vocab().items()}
        return {id_: name for id_, name in names.items() if id_ not in self._tag_names and name not in TAG_NAMES}

    def encode(self, text: str) -> list[int]:
        """Plain text only: the name of a special token or a tag in it is letters like any others."""
        _check_unicode(text)
        ids = self._backend.encode(text, add_special_tokens=False, split_special_tokens=True)
        return cast(list[int], ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The plain text of ``ids``; special tokens and tags have none."""
        if len(ids) != 1:
            return self._decode(ids)
        if ids[0] not in self._texts:
            self._texts[ids[0]] = self._decode(ids)
        return self._texts[ids[0]]

    def _decode(self, ids: Sequence[int]) -> str:
        plain = [id_ for id_ in ids if id_ not in self._special_ids and id_ not in self._tag_names]
        return cast(str, self._backend.decode(plain, clean_up_tokenization_spaces=False))

    def token_text(self, id_: int) -> str:
        """One token as text: a tag's or special token's name, or what it adds to an answer."""
        return self._tag_names.get(id_) or self._special_ids.get(id_) or self.decode([id_])

    def token_bytes(self, id_: int) -> bytes:
        """What the token adds to a text that has begun, in UTF-8, perhaps half of a character; of a special token or a
        tag, nothing."""
        if id_ not in self._token_bytes:
            self._token_bytes[id_] = b"" if self.is_special(id_) else self._bytes(id_)
        return self._token_bytes[id_]

    def _bytes(self, id_: int) -> bytes:
        before = self.encode("a")
        text = self._decode([*before, id_]).removeprefix(self._decode(before))
        if _REPLACEMENT not in text:
            return text.encode()
        name = cast(str, self._backend.convert_ids_to_tokens(id_))
        if match := _BYTE_TOKEN.fullmatch(name):
            return bytes.fromhex(match.group(1))
        return bytes(_BYTES[letter] for letter in name) if _BYTES.keys() >= set(name) else text.encode()

    def is_special(self, id_: int) -> bool:
        """Whether the token has no text of its own: special tokens and tags."""
        return id_ in self._special_ids or id_ in self._tag_names

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The model's chat template around ``messages``, ready for the assistant's answer.

        Only the template writes special tokens; their names in a message stay text. Raises InputError where the model
        has no chat template, or it refuses the messages.
        """
        if not self._backend.chat_template:
            raise InputError("the model has no chat template; send plain text to a completion instead")
        for message in messages:
            _check_unicode("".join(message.values()))
        quoted: list[str] = []
        safe = [
            {key: self._quote(value, quoted, end=key == "content") for key, value in message.items()}
            for message in messages
        ]
        try:
            rendered = self._backend.apply_chat_template(safe, add_generation_prompt=True, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # how templates refuse messages
            raise InputError(f"the model's chat template refuses the messages: {error}") from error
        if not quoted:
            return cast(list[int], self._backend.encode(rendered, add_special_tokens=False))
        return self._encode_quoted(rendered, quoted)

    def _quote(self, text: str, quoted: list[str], *, end: bool) -> str:
        """Replace names of special tokens, and the sentinels' own characters, by sentinels counted in ``quoted``; with
        ``end`` also the start of a name that the text ends in: what follows might complete it."""
        pattern = f"{self._special.pattern}|{_OPEN}|{_CLOSE}"

        def sentinel(match: re.Match[str]) -> str:
            quoted.append(match.group())
            return f"{_OPEN}{len(quoted) - 1}{_CLOSE}"

        safe = re.sub(pattern, sentinel, text)
        if not (end and (length := unfinished(safe, self._names))):
            return safe
        quoted.append(safe[-length:])
        return f"{safe[:-length]}{_OPEN}{len(quoted) - 1}{_CLOSE}"

    def _encode_quoted(self, rendered: str, quoted: Sequence[str]) -> list[int]:
        """The template's special tokens as such, and all between them as plain text with the sentinels resolved."""
        ids: list[int] = []
        start = 0
        for match in [*self._special.finditer(rendered), None]:
            text = rendered[start : match.start() if match else len(rendered)]
            if text:
                ids += self.encode(_SENTINEL.sub(lambda m: quoted[int(m.group(1))], text))
            if match:
                ids.append(self._backend.convert_tokens_to_ids(match.group()))
                start = match.end()
        return ids


def _check_unicode(text: str) -> None:
    """A lone surrogate, which JSON can smuggle in, is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not valid Unicode: {error.reason} at character {error.start}") from None


def _stop_ids(folder: Path, backend: Any) -> tuple[int, ...]:
    """The ids that end an answer, from the first of generation config, model config and tokenizer that names any."""
    candidates: list[Any] = []
    if (folder / "generation_config.json").is_file():
        candidates.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    if (folder / "config.json").is_file():
        candidates.append(AutoConfig.from_pretrained(folder, trust_remote_code=False).eos_token_id)
    candidates.append(backend.eos_token_id)
    for ids in candidates:
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()
