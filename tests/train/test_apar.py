"""From documents to APAR's threads: no text is lost, and only details fork."""

import pytest

from pasta_ray.lang import ControlMap, Thread, parse
from pasta_ray.train.apar import split_details, to_thread
from pasta_ray.train.data import KINDS, Record, build_example, collate

REST = " and then a good many words that say more about it."


class Letters:
    """One token a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("body", "lead"),
    [
        (f" **Go slow**:{REST}", " **Go slow**:"),
        (f" **Go slow.**{REST}", " **Go slow.**"),
        (f" Go slow:{REST}", " Go slow:"),
        (f" Go slow.{REST}", " Go slow."),
        (f"## Go slow\n\n{REST}", "## Go slow"),
        (" Go slow: now", " Go slow: now"),
        (f" Go slow{REST}", f" Go slow{REST}"),
        ("", ""),
    ],
)
def test_what_leads(body: str, lead: str) -> None:
    """Guards against details without a lead, and against threads of a word or two."""
    assert split_details(body) == (lead, body[len(lead) :])


def test_a_document_becomes_a_tree() -> None:
    """Guards against text that moves: read in tree order, the threads give the document's text."""
    document = parse(
        f'Hi:\n1.<promise topic="a" tokens="10"/><async> A:{REST}</async>\n2.<promise topic="b" tokens="10"/>'
        "<async> B</async><sync/>\nend"
    )
    thread = to_thread(document, Letters(), 0)
    children = [part for part in thread.parts if isinstance(part, Thread)]
    assert [read(child) for child in children] == [REST]
    assert read(thread) == document.text()
    assert thread.parts[-1] == children[0].parts[-1] == 0


def test_training_labels_what_a_thread_writes() -> None:
    """Guards what is learnt: every token but the prompt's and the forced child's, the fork token as a tag."""
    record = Record(id="d", instruction="Say", document=f'<promise topic="a" tokens="10"/><async> A:{REST}</async> end')
    controls = ControlMap(500, 501)
    example = build_example(record, ChatLetters(), controls)
    batch = collate([example])
    labels = batch.labels.tolist()
    assert labels.count(500) == 1
    assert 501 not in labels
    assert labels.count(0) == 2, "each thread ends by itself"
    assert KINDS[batch.kinds.tolist()[labels.index(500)]] == "tag"
    assert "".join(map(chr, (t for t in labels if 0 < t < 500))) == f" A:{REST} end"


class ChatLetters(Letters):
    stop_ids = (0,)

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode(messages[0]["content"])


def read(thread: Thread) -> str:
    return "".join(read(part) if isinstance(part, Thread) else chr(part) for part in thread.parts).replace("\0", "")
