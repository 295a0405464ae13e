"""The llm annotator, against a real HTTP server: replies taken, mended, refused; what it costs; nobody there."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response

from pasta_ray.cli import main
from pasta_ray.lang import Document, Promise, Sync, Text, parse
from pasta_ray.lang.document import predicted_tokens
from pasta_ray.train.annotators.base import Annotation
from pasta_ray.train.annotators.llm import LlmAnnotator, LlmConfig, read_reply
from pasta_ray.train.annotators.llm_prompt import DEMONSTRATIONS, opening_chat
from pasta_ray.train.annotators.topics import topic_fault
from pasta_ray.train.endpoint import EndpointConfig, EndpointError, Usage
from pasta_ray.train.pairs import Pair
from tests.engine.test_tokenizer import save_tokenizer
from tests.train.endpoints import Chat, Reply, completion, free_port, serving

ANSWER = "- Apples keep for months.\n- Bread is best fresh.\n\nEat both."
MARKED = (
    '-<promise topic="Apples" tokens="10"/><async> Apples keep for months.</async>\n'
    '-<promise topic="Bread" tokens="10"/><async> Bread is best fresh.</async><sync/>\n\nEat both.'
)


def count_words(text: str) -> int:
    return len(text.split())


def pairs(*answers: str) -> list[Pair]:
    return [Pair(id=f"p{i}", instruction="How?", input="Now", output=answer) for i, answer in enumerate(answers)]


def annotate(
    answer: Callable[[Chat], Reply], *answers: str, num_attempts: int = 2
) -> tuple[list[Annotation], list[Any]]:
    """Annotations, and the requests that the endpoint saw."""
    with serving(answer) as stub:
        config = LlmConfig(EndpointConfig(stub.base_url, "m", max_retries=0, timeout_s=5), num_attempts)
        annotations = LlmAnnotator(config, count_words).annotate(pairs(*answers))
    return annotations, stub.requests


def test_a_marked_answer_becomes_a_document() -> None:
    """Guards lengths, which the model does not know, and the text, which it must not touch."""
    (annotation,), (request,) = annotate(lambda _: f"\n{MARKED}\n", ANSWER)
    assert annotation.document is not None
    assert annotation.document.text() == ANSWER
    body = "Apples keep for months. " * 30
    long = MARKED.replace(" Apples keep for months.", f" {body.strip()}")
    measured = read_reply(long, parse(long).text(), count_words).document
    assert measured is not None
    assert [promise.num_tokens for promise in measured.promises] == [predicted_tokens(122), 10]
    assert annotation.usage == Usage(1, 100, 20)
    assert request["messages"] == opening_chat("How?\n\nNow", ANSWER)


def test_a_bad_reply_is_sent_back_with_what_is_wrong() -> None:
    """Guards the second chance: the model sees its reply and the complaint."""
    replies = iter([MARKED.replace("</async>\n", "\n"), MARKED])
    (annotation,), requests = annotate(lambda _: next(replies), ANSWER)
    assert annotation.document is not None
    assert annotation.usage == Usage(2, 200, 40)
    *_, reply, complaint = requests[1]["messages"]
    assert reply["role"] == "assistant"
    assert "line 2, column 2: found promise; expected text or </async>" in complaint["content"]


@pytest.mark.parametrize(
    ("reply", "reason", "detail"),
    [
        ("I would rather not.", "the reply changes the text", "it says 'I would rather not.', the answer '- Apples"),
        (MARKED.replace("best", "the best"), "the reply changes the text", "at character 37"),
        (MARKED + " End", "the reply changes the text", "it says ' End', the answer ''"),
        (MARKED.replace("\n\n", "\n"), "the reply changes the text", "at character"),
        (f"```\n{MARKED}\n```", "the reply changes the text", "at character 0"),
        (MARKED.replace("<sync/>", "<sync/><sync/>"), "the reply does not parse", "line 2"),
        (MARKED.replace('"Bread"', '"a very long topic"'), "the reply does not parse", "one to 3 words"),
        ("", "the reply changes the text", "it says ''"),
        (completion(MARKED[:30], finish_reason="length"), "the reply is too long", "cut off at"),
        (Response("{}", media_type="application/json"), "the endpoint's reply cannot be read", "choices"),
        (Response("no", status_code=400), "the endpoint answered with status 400", "no"),
    ],
)
def test_nonsense_is_dropped_with_its_reason(reply: Reply, reason: str, detail: str) -> None:
    """Guards documents against replies that say something else, and a run against one bad pair."""
    good = "All is well, as it was."

    def answer(chat: Chat) -> Reply:
        return good if good in next(m["content"] for m in reversed(chat) if "ANSWER" in m["content"]) else reply

    (bad, fine), requests = annotate(answer, ANSWER, good)
    assert fine.document == Document((Text(good),))
    assert bad.document is None
    assert (bad.reason, detail in bad.detail) == (reason, True), bad.detail
    tried = 1 if isinstance(reply, Response) else 2
    assert len(requests) == tried + 1


def test_where_nothing_works_the_run_stops() -> None:
    """Guards against thousands of pairs dropped because of a wrong address, key or name."""
    config = LlmConfig(EndpointConfig(f"http://127.0.0.1:{free_port()}/v1", "m", max_retries=0))
    with pytest.raises(EndpointError, match="cannot be reached"):
        LlmAnnotator(config, count_words).annotate(pairs(ANSWER, ANSWER))
    for status in (404, 500):
        with pytest.raises(EndpointError, match=f"status {status}"):
            annotate(lambda _: Response("no", status_code=status), ANSWER, ANSWER)  # noqa: B023
    with serving(lambda _: MARKED) as stub:
        annotator = LlmAnnotator(LlmConfig(EndpointConfig(stub.base_url, "m", max_retries=0)), count_words)
        annotator.annotate(pairs(ANSWER))
        stub.answer = lambda _: Response("no", status_code=500)
        (annotation,) = annotator.annotate(pairs(ANSWER))
        assert annotation.reason == "the endpoint answered with status 500", "it worked before: this pair alone is lost"
        stub.answer = lambda _: Response("no", status_code=401)
        with pytest.raises(EndpointError, match="401"):
            annotator.annotate(pairs(ANSWER))


def test_what_looks_like_a_tag_is_text() -> None:
    """Guards answers about PASTA-LANG itself: in the task they are escaped, and so they come back."""
    answer = r"Write <sync/> or \<promise/> with a \ before it."
    (annotation,), _ = annotate(lambda chat: chat[-1]["content"].split("ANSWER\n")[1], answer)
    assert annotation.document == Document((Text(answer),))


def test_the_demonstrations_keep_the_rules() -> None:
    """Guards against teaching a model what the rules forbid."""
    assert sum(len(parse(document).promises) for _, document in DEMONSTRATIONS) == 8
    for _, linear in DEMONSTRATIONS:
        document = parse(linear)
        assert document.linear() == linear
        assert topic_fault(document) is None
        assert len(document.promises) != 1
        for node, following in pairwise(document.nodes):
            if isinstance(node, Text) and isinstance(following, Promise):
                assert len(node.text.split()) < 3 or node is document.nodes[0], "only markers stand between parts"
        assert not isinstance(document.nodes[-1], Sync)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_command_reports_the_cost(
    num_workers: int, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards the whole way from the command line, its report, and that a run which stopped has lost nothing."""
    if num_workers:
        request.getfixturevalue("ray_cluster")
    answers, out = tmp_path / "answers.jsonl", tmp_path / "out.jsonl"
    answers.write_text(
        "".join(pair.model_dump_json() + "\n" for pair in pairs(ANSWER, f"{ANSWER} Soon.")), encoding="utf-8"
    )
    (tmp_path / "model").mkdir()
    model = str(save_tokenizer(tmp_path / "model"))
    command = ["annotate", str(answers), "--out", str(out), "--annotator", "llm", "--model", model, "--json"]
    command += ["--max-retries", "0", "--price-in", "1000", "--price-out", "10000", "--num-workers", str(num_workers)]
    with serving(lambda chat: MARKED if chat[-1]["content"].endswith("both.") else "Poem.") as stub:
        with pytest.raises(SystemExit) as done:
            main([*command, "--endpoint", stub.base_url, "--endpoint-model", "m"])
        assert done.value.code == 0
        report = json.loads(capsys.readouterr().out)
        assert report["dropped"] == {"the reply changes the text": 1}
        assert report["usage"] == {"num_requests": 3, "prompt_tokens": 300, "completion_tokens": 60, "cost": 0.9}
        written = out.read_text(encoding="utf-8")
        assert json.loads(written)["usage"]["prompt_tokens"] == 100
    with answers.open("a", encoding="utf-8") as file:
        file.write(Pair(id="new", instruction="?", output=ANSWER).model_dump_json() + "\n")
    with pytest.raises(SystemExit) as done:
        main([*command, "--endpoint", stub.base_url, "--endpoint-model", "m"])
    assert done.value.code == 1
    assert "error: the endpoint cannot be reached" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == written
