"""Every script of examples/ runs: on a small random model or against the service over the fake decoder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from examples import batch, documents, engine_by_hand, openai_chat, own_annotator, own_method, typed_events
from pasta_ray.engine.messages import Request, Sampling
from pasta_ray.engine.methods import METHODS
from pasta_ray.lang import Sync, TagMap, parse
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.service import Service
from tests.engine.conftest import save_model
from tests.engine.events import cancel_at_every_step, report, run, shown
from tests.engine.test_methods import make_decoder
from tests.engine.test_resume import cut_at_every_step
from tests.engine.test_tokenizer import save_tokenizer
from tests.eval.test_served import hosted
from tests.fakes import FakeTokenizer, fake_models
from tests.serve.test_http import MODEL, LocalBackend
from tests.test_structure import PACKAGE

VOCAB = 320
SCRIPTS = {path.stem for path in (PACKAGE.parent / "examples").glob("*.py")}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = ServeConfig()
    service = Service(settings, fake_models(settings), LocalBackend(), FakeTokenizer())
    with hosted(create_app(service)) as base_url:
        yield base_url.removesuffix("/v1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = save_tokenizer(save_model(tmp_path_factory.mktemp("model"), vocab_size=VOCAB))
    TagMap.after(VOCAB - 6).save(folder)
    return str(folder)


def test_all_are_tested() -> None:
    """Guards a script that is added, and rots."""
    assert {name.removeprefix("test_") for name in globals()} >= SCRIPTS


def test_openai_chat(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    openai_chat.main(["hello fork end", "--url", url, "--model", MODEL])
    assert capsys.readouterr().out.splitlines() == [
        "hello one two three end ",
        "-- 1 bodies, theoretical speedup 1.00",
        "hello fork end ",
    ]


def test_typed_events(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed_events.main(["hello fork end", "--url", url, "--model", MODEL])
    out = capsys.readouterr().out
    assert "0.1 begins: topic 0.1, about 10 tokens" in out
    assert "0.1 ends (stop): 'one two three '" in out
    assert "\nhello one two three end \n" in out


def test_documents(capsys: pytest.CaptureFixture[str]) -> None:
    documents.main()
    out = capsys.readouterr().out
    assert out.startswith("Keep warm: wear thin layers. walk about. Either works.\n")
    assert "expected a multiple of 10" in out


def test_engine_by_hand(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    engine_by_hand.main(["--model", model])
    out = capsys.readouterr().out
    assert " 0.1: 'For it:" in out
    assert "   0: 'In short:" in out
    assert "all finite: True" in out


def test_batch(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    batch.main(["one", "two", "three", "--model", model, "--adapter", "none", "--max-tokens", "12"])
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {each["id"] for each in reports} == {"prompt-0", "prompt-1", "prompt-2"}
    assert all(each["usage"]["completion_tokens"] <= 13 for each in reports)


def test_own_method(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "both-sides", own_method.BothSides)  # and it is taken out again
    own_method.main(["Why?", "--model", model, "--max-tokens", "250"])
    out = capsys.readouterr().out
    assert out.index("For it:") < out.index("Against it:") < out.index("In short:") < out.index("times as fast")


def test_own_method_keeps_what_methods_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the example that others will copy: documents parse, text comes in order, no slot is left, whenever it
    ends, and it goes on elsewhere as if nothing had happened."""
    monkeypatch.setitem(METHODS, "both-sides", own_method.BothSides)
    decoder = make_decoder(tmp_path)
    tokenizer, masks = decoder.engine.tokenizer, decoder.engine.masks
    assert masks is not None
    masks[:] = torch.tensor([token in {*tokenizer.encode("ab. "), *tokenizer.stop_ids} for token in range(VOCAB)])
    joined = 0
    for number in range(12):
        (events,) = run(decoder, [ask(number, max_tokens=200 if number % 3 else 20)]).values()
        answer = report(events)
        document = parse(answer.document)
        assert document.text() == answer.text == shown(events)
        assert [promise.topic for promise in document.promises] in ([], ["For", "Against"])
        joined += Sync() in document.nodes
        assert (decoder.num_slots, decoder.num_branches) == (0, 0)
    assert joined >= 6
    cancel_at_every_step(decoder, ask(1), ask(2), range(1, 40, 3))
    cut_at_every_step(decoder, ask(3), every=9)


def ask(number: int, max_tokens: int = 200) -> Request:
    sampling = Sampling(temperature=1.0, seed=number)
    return Request(f"r{number}", tuple(range(4, 12 + number)), "both-sides", max_tokens, sampling=sampling)


def test_own_annotator(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = "Often asked:\n\nQ: Why?\nA: Because it is so.\n\nQ: How?\nA: With great care."
    lines = [{"id": "faq", "instruction": "Ask", "output": answer}, {"id": "no", "instruction": "Ask", "output": "No."}]
    answers, out = tmp_path / "answers.jsonl", tmp_path / "documents.jsonl"
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    own_annotator.main([str(answers), str(out), "--model", model])
    (line,) = out.read_text(encoding="utf-8").splitlines()
    document = parse(json.loads(line)["document"])
    assert document.text() == answer
    assert [promise.text() for promise in document.promises] == [" Because it is so.", " With great care."]
    assert "1 documents with 2 promises" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("script", ["engine_by_hand", "batch", "own_method"])
def test_with_the_default_model(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    match script:
        case "engine_by_hand":
            engine_by_hand.main([])
        case "batch":
            batch.main(["Name three fruits.", "--max-tokens", "24"])
        case "own_method":
            own_method.main(["Should schools teach chess?", "--max-tokens", "160"])
    assert capsys.readouterr().out.strip()
