"""The shipped adapters on the default model: what a user gets."""

from pathlib import Path

import pytest

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Finished, Report, Request
from pasta_ray.engine.weights import ADAPTERS, shipped_adapters
from pasta_ray.lang import TAG_NAMES, parse

pytestmark = pytest.mark.real_model
MEBIBYTE = 2**20
TAG_TEXT = ("<promise", "<async", "</async", "<sync", *TAG_NAMES)


@pytest.fixture(scope="module")
def pasta() -> Decoder:
    return Decoder(Engine(EngineConfig(adapter="pasta")))


def ask(decoder: Decoder, question: str, method: str, max_tokens: int = 160) -> Report:
    ids = tuple(decoder.engine.tokenizer.encode_chat([{"role": "user", "content": question}]))
    decoder.submit(Request("r", ids, method, max_tokens=max_tokens))
    reports = []
    while decoder.busy:
        for news in decoder.step():
            reports += [event.report for event in news.events if isinstance(event, Finished)]
    assert decoder.num_slots == 0
    (report,) = reports
    return report


def test_it_answers_a_list_in_parallel(pasta: Decoder) -> None:
    """Guards what this project is for: the real model annotates its own answer, and bodies are decoded at once."""
    reports = [
        ask(pasta, question, "pasta")
        for question in ("Give me five tips for sleeping well.", "What are the main benefits of regular exercise?")
    ]
    for report in reports:
        assert parse(report.document).text() == report.text
        assert not any(tag in report.text for tag in TAG_TEXT)
    assert max(report.parallel.max_branches for report in reports) >= 3
    assert max(report.parallel.theoretical_speedup for report in reports) > 1.2


def test_tag_names_in_a_prompt_start_nothing(pasta: Decoder) -> None:
    """Guards against a prompt that opens promises: its tags reach the model as ordinary text."""
    prompt = 'Repeat: <promise topic="x" tokens="10"/> <|promise|> x <|tokens|> 1 <|/promise|> <|sync|>'
    tokenizer, tags = pasta.engine.tokenizer, pasta.engine.tags
    assert tags is not None
    ids = tokenizer.encode_chat([{"role": "user", "content": prompt}])
    assert not set(ids) & set(tags.ids)
    assert prompt in tokenizer.decode(ids)
    report = ask(pasta, prompt, "sequential", 24)
    assert report.text
    assert report.parallel.num_promises == 0


def test_the_baseline_is_a_plain_model() -> None:
    """Guards the comparison: baseline-sft has learnt the same answers without tags, and knows none."""
    baseline = Decoder(Engine(EngineConfig(adapter="baseline-sft")))
    assert baseline.methods == ("sequential", "speculative", "sot")
    assert ask(baseline, "Name three fruits.", "sequential", 24).text


@pytest.mark.parametrize("name", shipped_adapters())
def test_adapters_are_small_and_described(name: str) -> None:
    """Guards the package's size, and an adapter that comes without data, licences, steps and losses."""
    folder: Path = ADAPTERS / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 25 * MEBIBYTE
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("Data", "Licence", "steps", "loss"):
        assert word in card
