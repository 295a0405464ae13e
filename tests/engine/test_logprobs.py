"""Log-probabilities of the visible tokens: the model's own, in document order, and free of charge where not asked."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Delta, Event, Events, Request, Sampling
from pasta_ray.engine.methods import Run
from pasta_ray.engine.reading import Reader, ReadToken
from pasta_ray.engine.sampler import score
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.errors import InputError
from pasta_ray.lang import TagMap, TokenPromise, TokenText, layout, read_tokens
from tests.engine.conftest import layout_logits
from tests.engine.events import report, run
from tests.engine.test_methods import make_decoder, request

METHODS = ("sequential", "speculative", "pasta", "pasta+speculative")
NUM_LIKELIEST = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return make_decoder(folder)


@pytest.fixture(scope="module")
def reference(decoder: Decoder, folder: Path) -> PreTrainedModel:
    assert decoder
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def asking(request: Request, logprobs: int | None = NUM_LIKELIEST) -> Request:
    return replace(request, sampling=replace(request.sampling, logprobs=logprobs))


def read(events: list[Event], stop: Sequence[str] = ()) -> tuple[str, list[ReadToken]]:
    """Text and tokens as a client gets them, event by event."""
    reader, text, tokens = Reader(stop), "", []
    for event in events:
        text += reader.read(Events("", (event,)))
        tokens += reader.take_tokens()
    return text, tokens


def decode(decoder: Decoder, request: Request) -> tuple[list[Event], Run]:
    decoder.submit(request)
    run_ = decoder._runs[request.id]
    events: list[Event] = []
    while decoder.busy:
        for news in decoder.step():
            events += news.events
    return events, run_


def linear(run_: Run, tags: TagMap) -> list[int]:
    """The answer's tokens with each body behind its promise."""
    ids: list[int] = []
    bodies = iter([track.branch.tokens for path, track in run_.tracks.items() if path != "0"])
    for token in run_.main.branch.tokens[len(run_.request.prompt_ids) :]:
        ids += [token, *next(bodies)] if token == tags.promise_end else [token]
    return ids


@pytest.mark.parametrize("method", METHODS)
def test_they_are_the_models_own_distribution(decoder: Decoder, reference: PreTrainedModel, method: str) -> None:
    """Guards every figure against one forward pass with the layout: wrong rows of a batch, drafts that were rejected,
    bodies out of order, values after temperature or mask, tags among the likeliest."""
    tokenizer, tags = decoder.engine.tokenizer, decoder.engine.tags
    assert isinstance(tags, TagMap)
    num_compared = num_bodies = 0
    for number in range(24):
        events, run_ = decode(decoder, asking(request(number, method)))
        if "pasta" in method and report(events).finish_reason != "stop":
            continue  # a promise that was cut off is no document
        document = read_tokens(linear(run_, tags), tokenizer, tags)
        form = layout(document, run_.request.prompt_ids)
        logprobs = layout_logits(reference, form).log_softmax(-1)
        visible, index = [], len(run_.request.prompt_ids)
        for node in document.nodes:
            if isinstance(node, TokenPromise):
                index += len(node.head)
                visible += range(index + 1, index + len(node.body) - 1)
                index += len(node.body)
                num_bodies += 1
            elif isinstance(node, TokenText):
                visible += range(index, index + len(node.ids))
                index += len(node.ids)
            else:
                index += 1
        visible = [index for index in visible if not tokenizer.is_special(form.ids[index])]
        _, tokens = read(events)
        assert len(tokens) == len(visible)
        for token, index in zip(tokens, visible, strict=True):
            row = logprobs[form.label_source[index]]
            assert token.likelihood.token == tokenizer.token_bytes(form.ids[index])
            assert abs(token.likelihood.logprob - float(row[form.ids[index]])) < 1e-3
            order = [id_ for id_ in row.argsort(descending=True).tolist() if not tokenizer.is_special(id_)]
            expected = [(tokenizer.token_bytes(id_), float(row[id_])) for id_ in order[:NUM_LIKELIEST]]
            for (written, logprob), (expected_bytes, expected_logprob) in zip(
                token.likelihood.likeliest, expected, strict=True
            ):
                assert abs(logprob - expected_logprob) < 1e-3
                assert written == expected_bytes
            num_compared += 1
    assert num_compared > 100
    assert num_bodies > 10 or "pasta" not in method


@pytest.mark.parametrize("method", METHODS)
def test_asking_changes_no_answer(decoder: Decoder, method: str) -> None:
    """Guards the choice of tokens, of the request that asks and of its neighbours."""
    plain = [request(number, method) for number in range(6)]
    mixed = [asking(each, 20) if number % 2 else each for number, each in enumerate(plain)]
    without, beside = run(decoder, plain), run(decoder, mixed)
    for number, each in enumerate(plain):
        one, other = report(without[each.id]), report(beside[each.id])
        assert (one.text, one.document, one.usage, one.parallel) == (
            other.text,
            other.document,
            other.usage,
            other.parallel,
        )
        with_some = any(event.likelihoods for event in beside[each.id] if isinstance(event, Delta))
        assert with_some == bool(number % 2)


def test_nothing_is_scored_where_nobody_asks(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the cost: a softmax over the vocabulary for each token."""
    monkeypatch.setattr("pasta_ray.engine.commit.score", None)
    run(decoder, [request(1)])


@pytest.mark.parametrize("method", METHODS)
def test_their_bytes_are_the_text(decoder: Decoder, method: str) -> None:
    """Guards tokens that are lost or doubled where a character spans several, where branches meet and where an answer
    is cut off; and offsets that do not point at their token."""
    num_split = num_whole = 0
    for number in range(30):
        events = run(decoder, [asking(request(number, method, max_tokens=40), 0)])[f"r{number}"]
        text, tokens = read(events)
        assert text == report(events).text
        written = b"".join(token.likelihood.token for token in tokens)
        assert [token.offset for token in tokens] == sorted(token.offset for token in tokens)
        assert written.translate(None, "é".encode()).decode() == re.sub("[é\ufffd]", "", text)
        if "pasta" not in method:
            assert written.decode(errors="replace") == text
            assert len(tokens) == report(events).usage.completion_tokens - (report(events).finish_reason == "stop")
        if "\ufffd" in text:
            num_split += 1
            continue
        num_whole += 1
        assert written.decode() == text
        for token in tokens:
            piece = token.likelihood.token.decode(errors="ignore")
            assert text.startswith(piece, token.offset)
    assert num_split
    assert num_whole or "pasta" in method


@pytest.mark.parametrize("method", ["sequential", "pasta"])
def test_a_stop_string_ends_them_with_the_text(decoder: Decoder, method: str) -> None:
    """Guards tokens of text that is not shown, and text without its tokens, whichever token the string begins in."""
    num_cut = 0
    for number in range(30):
        whole = asking(request(number, method, max_tokens=40), 1)
        text, tokens = read(run(decoder, [whole])[whole.id])
        for start in range(0, max(0, min(len(text), 20) - 3), 5):
            stop = text[start : start + 3]
            stopped = replace(whole, stop=(stop,))
            cut, own = read(run(decoder, [stopped])[stopped.id], (stop,))
            assert cut == text[: text.index(stop)]
            assert own == [token for token in tokens if token.offset < len(cut)]
            num_cut += 1
    assert num_cut > 20


def test_scores_are_a_softmax_of_their_row() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 50) * 5
    expected = logits.log_softmax(-1)
    for row, scores in enumerate(score(logits, [4, 7, 0], 60)):
        assert abs(scores.logprob - float(expected[row, [4, 7, 0][row]])) < 1e-5
        assert [id_ for id_, _ in scores.likeliest] == logits[row].argsort(descending=True).tolist()
        assert abs(sum(torch.tensor([value for _, value in scores.likeliest]).exp()) - 1) < 1e-5
    assert [scores.likeliest for scores in score(logits, [0, 0, 0], 0)] == [(), (), ()]


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(InputError, match="logprobs is 21; allowed: 0 to 20"):
        Sampling(logprobs=21)
    with pytest.raises(InputError, match="method 'sot'"):
        Request("a", (1,), "sot", sampling=Sampling(logprobs=1))
    with pytest.raises(InputError, match="without the constraint"):
        Request("a", (1,), "pasta", sampling=Sampling(logprobs=1), constrained=False)


TEXT = "naïve π🍝 <0x41> \ufffd 好"


def test_token_bytes_of_a_byte_level_vocabulary(decoder: Decoder) -> None:
    tokenizer = decoder.engine.tokenizer
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(TEXT))) == TEXT.encode()
    assert isinstance(decoder.engine.tags, TagMap)
    assert {tokenizer.token_bytes(id_) for id_ in (*decoder.engine.tags.ids, *tokenizer.stop_ids)} == {b""}


def test_token_bytes_of_a_vocabulary_with_a_fallback_to_bytes() -> None:
    """Guards SentencePiece's way (Llama 2, Mistral, Gemma): a space is a letter of its own, rare characters are bytes,
    and the decoder drops the space that a text begins with."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁naiveo", "▁na", "ve"]
    vocab = {name: id_ for id_, name in enumerate(names)}
    backend = Backend(models.BPE(vocab, [("▁", "na"), ("v", "e")][1:], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), None, ())
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(" " + TEXT))) == (" " + TEXT).encode()
    assert tokenizer.token_bytes(vocab["▁na"]) == b" na"
