"""The llm judge against a real HTTP server: both orders, confidence, misses, and an endpoint that is not there."""

import json
import math
from pathlib import Path

import pytest
from fastapi import Response

from pasta_ray.cli import main
from pasta_ray.train.endpoint import Completion, EndpointConfig, EndpointError, Usage
from pasta_ray.train.judges.base import Answer, Comparison, Question
from pasta_ray.train.judges.llm import LlmJudge, read_choice
from tests.train.endpoints import Chat, completion, free_port, serving
from tests.train.test_score import read, sample, write


def compare(base_url: str, *pairs: tuple[str, str]) -> tuple[LlmJudge, list[float | None]]:
    judge = LlmJudge(EndpointConfig(base_url, "m", max_retries=0, timeout_s=20))
    question = Question("What?", "material", "be brief")
    return judge, judge.compare([Comparison(question, Answer(a), Answer(b)) for a, b in pairs])


def a_comes_first(chat: Chat) -> bool:
    text = chat[-1]["content"]
    return text.index("GOOD") < text.index("BAD")


def with_logprobs(text: str, **probabilities: float) -> Response:
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in probabilities.items()]
    content = [{"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": top}]
    return completion(text, logprobs={"content": content})


def test_both_orders_are_asked_and_averaged() -> None:
    """Guards against a judge whose liking of the first place decides: 0.9 for A in one order, 0.7 for A in the other,
    make (0.9 + 0.3) / 2."""
    with serving(
        lambda chat: with_logprobs("A", A=0.9, B=0.1) if a_comes_first(chat) else with_logprobs("A", A=0.7, B=0.3)
    ) as stub:
        judge, (verdict,) = compare(stub.base_url, ("GOOD", "BAD"))
        _, (back,) = compare(stub.base_url, ("BAD", "GOOD"))
    assert verdict == pytest.approx((0.9 + 1 - 0.7) / 2)
    assert back == pytest.approx(1 - (0.9 + 1 - 0.7) / 2), "swapping the answers gives the complement"
    assert judge.name == "llm:m"
    assert judge.costs()["requests"] == 2
    assert judge.costs()["prompt_tokens"] == 200
    content = stub.requests[0]["messages"][-1]["content"]
    assert "What?\n\nmaterial" in content
    assert "be brief" in content
    assert stub.requests[0]["logprobs"] is True


def test_without_logprobs_verdicts_are_whole() -> None:
    """Guards endpoints that give no log-probabilities, and a judge that always says A: it has no opinion."""
    with serving(lambda chat: "A" if a_comes_first(chat) else "B.") as stub:
        assert compare(stub.base_url, ("GOOD", "BAD"), ("BAD", "GOOD"))[1] == [1.0, 0.0]
    with serving(lambda _: "Answer A") as stub:
        assert compare(stub.base_url, ("GOOD", "BAD"))[1] == [0.5]


def test_nonsense_is_a_miss_and_equal_answers_a_draw() -> None:
    """Guards against a verdict read into a reply that has none, and requests about nothing."""
    with serving(lambda _: "A is good, but so is B") as stub:
        assert compare(stub.base_url, ("GOOD", "BAD"), ("same ", "same"))[1] == [None, 0.5]
        assert len(stub.requests) == 2
    with serving(lambda _: Response("{}", media_type="application/json")) as stub:
        assert compare(stub.base_url, ("GOOD", "BAD"))[1] == [None]


def test_choices_are_read_from_letters_and_their_probabilities() -> None:
    """Guards the first token that chooses, in whatever spelling, against words before it."""

    def choice(text: str, *tops: dict[str, float]) -> float | None:
        logs = tuple({token: math.log(p) for token, p in top.items()} for top in tops)
        return read_choice(Completion(text, "stop", Usage(), logs))

    assert choice("A", {"A": 0.5, " A": 0.1, "B": 0.2, "x": 0.2}) == pytest.approx(0.75)
    assert choice("Answer b", {"Answer": 0.98, "A": 0.01}, {" b": 0.6, " a": 0.2}) == pytest.approx(0.25)
    assert choice(" **B** ") == 0.0
    assert choice("a") == 1.0
    assert choice("Both") is None
    assert choice("") is None


def test_an_endpoint_that_is_not_there_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against misses by the thousand where nobody answers, and against the loss of what was scored before."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EndpointError, match="cannot be reached"):
        compare(url, ("GOOD", "BAD"))
    samples = write(
        tmp_path / "s.jsonl", *(sample(f"p{n}", k, text) for n in range(9) for k, text in enumerate(("GOOD", "BAD")))
    )
    out = tmp_path / "out.jsonl"
    asked = 0

    def fail_later(chat: Chat) -> str | Response:
        nonlocal asked
        asked += 1
        return ("A" if a_comes_first(chat) else "B") if asked <= 16 else Response(status_code=401)

    with serving(fail_later) as stub, pytest.raises(SystemExit) as exit_:
        main(["train", "score", str(samples), "--out", str(out), *options(stub.base_url)])
    assert exit_.value.code == 1
    assert "the endpoint answered with status 401" in capsys.readouterr().err
    assert len(read(out)) == 16
    with serving(lambda chat: "A" if a_comes_first(chat) else "B") as stub, pytest.raises(SystemExit) as exit_:
        main(["train", "score", str(samples), "--out", str(out), *options(stub.base_url), "--json"])
    assert exit_.value.code == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["num_before"], counts["num_samples"], counts["requests"]) == (16, 2, 2)
    assert [line["quality"] for line in read(out)] == [1.0, 0.0] * 9
    assert {line["judge"] for line in read(out)} == {"llm:m"}
    assert "judge_features" not in read(out)[0]


def options(base_url: str) -> list[str]:
    return ["--judge", "llm", "--base-url", base_url, "--judge-model", "m"]
