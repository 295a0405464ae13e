"""The language without a model: text to a document, and its layout, the rule that decoding and training share.

python examples/documents.py
"""

from collections.abc import Sequence

from pasta_ray.lang import PastaSyntaxError, TagMap, encode_document, layout, parse

ANSWER = (
    'Keep warm:<promise topic="Layers" tokens="10"/><async> wear thin layers.</async>'
    '<promise topic="Movement" tokens="10"/><async> walk about.</async><sync/> Either works.'
)


class Words:
    """A tokenizer of words; a model's own has the same two methods."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str) -> list[int]:
        words = text.replace(" ", "\0 ").split("\0")
        self.words += [word for word in words if word and word not in self.words]
        return [self.words.index(word) for word in words if word]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words[id_] for id_ in ids)


def main() -> None:
    document = parse(ANSWER)
    print(document.text())
    for promise in document.promises:
        print(f"- {promise.topic}: {promise.text()!r}, predicted {promise.num_tokens} tokens")

    words, tags = Words(), TagMap.after(1000)  # six token ids from 1000 on
    tokens = encode_document(document, words, tags)
    form = layout(tokens, prompt_ids=words.encode("How?"))
    names = dict(zip(tags.ids, tags.names, strict=True))
    for index, token in enumerate(form.ids):
        sees = "".join("#" if form.sees(index, other) else "." for other in range(len(form.ids)))
        name = names.get(token) or words.decode([token])
        print(f"{name:>14}  position {form.positions[index]:2}  sees {sees}")

    try:
        parse('1.<promise topic="Layers" tokens="15"/>')
    except PastaSyntaxError as error:
        print(error)


if __name__ == "__main__":
    main()
