"""What OpenAI's request fields do, through the routes without Ray; stop strings are in test_whole."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import CompletionCreateParamsBase

from pasta_ray.logs import TextFormatter
from pasta_ray.serve.merging import merged
from pasta_ray.serve.schema import ChatBody, CompletionBody
from tests.serve.test_http import MODEL, LocalBackend, chat, events, post, streamed_text


def completion(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, **fields}


def test_several_answers_are_sampled_apart_and_their_prompt_counts_once() -> None:
    """Guards n: choices that are copies of one another, a seed that does not repeat one of them alone, usage that
    bills the prompt n times."""
    backend = LocalBackend()
    answer = post(chat("hello fork", n=3, temperature=1, seed=2**63 - 1), backend=backend).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"hello one two three "}
    assert [request.sampling.seed for request in backend.requests] == [2**63 - 1, -(2**63), -(2**63) + 1]
    assert [choice["pasta"]["id"] for choice in answer["choices"]] == [answer["id"] + end for end in ("", ".1", ".2")]
    assert "pasta" not in answer
    assert answer["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 15,
        "total_tokens": 25,
        "completion_tokens_details": {"annotation_tokens": 21},
    }
    assert backend.loop.stats().num_slots == 0


def test_several_answers_are_streamed_side_by_side() -> None:
    body = chat("a b c d", n=2, stream=True, stream_options={"include_usage": True})
    *chunks, last = events(post(body))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 10
    assert all(chunk["usage"] is None for chunk in chunks)
    for index in (0, 1):
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert streamed_text(own) == "a b c d "
        assert own[-1]["choices"][0]["finish_reason"] == "stop"
        assert own[-1]["pasta"]["text"] == "a b c d "
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order != sorted(order), "the second answer waited for the first"


@pytest.mark.parametrize("stream", [False, True])
def test_one_choice_that_fails_ends_them_all(stream: bool) -> None:
    """Guards the slots of the choices beside one that failed."""
    backend = LocalBackend()
    response = post(chat("one two crash", n=4, stream=stream), backend=backend)
    if stream:
        assert "out of luck" in events(response)[-1]["error"]["message"]
    else:
        assert response.status_code == 500
    assert backend.loop.stats().num_slots == 0


def test_several_prompts_are_continued_in_order_and_echoed_on_request() -> None:
    backend = LocalBackend()
    body = completion(["a", "b fork"], n=2, echo=True, best_of=2)
    answer = post(body, "/v1/completions", backend).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["aa ", "aa ", "b forkb one two three ", "b forkb one two three "]
    assert answer["usage"]["prompt_tokens"] == len("a") + len("b fork")
    assert backend.requests[0].sampling.seed == backend.requests[1].sampling.seed - 1
    chunks = events(post(body | {"stream": True}, "/v1/completions"))
    for index, text in enumerate(texts):
        own = [chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(own) == text


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": [1, 2]}, "prompt", "token ids are not supported"),
        ({"prompt": [[1, 2]]}, "prompt", "token ids are not supported"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": ""}, "prompt.0", "at least 1 character"),
        ({"prompt": ["a"] * 17}, "prompt", "n is 1, for 17 prompts; allowed: up to 16 answers in all"),
        ({"best_of": 2}, "best_of", "is 2; choosing among answers is not supported"),
        ({"n": 3, "best_of": 1}, "best_of", "allowed: the value of n"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"logprobs": 0, "echo": True}, "logprobs", "goes without echo"),
        ({"suffix": "end"}, "suffix", "is 'end'; not supported"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream: true"),
        ({"pasta": {"events": True}}, "pasta.events", "allowed: with stream: true"),
    ],
)
def test_what_a_completion_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str, message: str) -> None:
    response = post(completion("x") | fields, "/v1/completions")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert message in response.json()["error"]["message"]


def test_neutral_values_are_no_reason_to_refuse() -> None:
    neutral = {
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "metadata": {},
        "reasoning_effort": "none",
        "verbosity": "medium",
        "prompt_cache_key": None,
        "logit_bias": {},
        "top_logprobs": None,
    }
    assert post(chat("x", **neutral)).status_code == 200


def test_typed_events_say_what_each_branch_does() -> None:
    """Guards events that contradict the text: put together by branch they are the answer."""
    chunks = events(post(chat("hello fork a b fork end", stream=True, pasta={"events": True})))
    told = [event for chunk in chunks[1:] for event in chunk["pasta"]["events"]]
    promises = [event for event in told if event["type"] == "promise"]
    assert promises == [
        {"type": "promise", "branch": f"0.{i}", "parent": "0", "topic": f"topic 0.{i}", "tokens_predicted": 10}
        for i in (1, 2)
    ]
    text = dict.fromkeys(("0", "0.1", "0.2"), "")
    for event in told:
        if event["type"] == "delta":
            text[event["branch"]] += event["text"]
    assert text == {"0": "hello a b end ", "0.1": "one two three ", "0.2": "one two three "}
    assert [event["branch"] for event in told if event["type"] == "close"] == ["0.1", "0.2"]
    assert {event["type"] for event in told} == {"promise", "delta", "close", "report"}
    assert told[-1]["report"] == {key: value for key, value in chunks[-1]["pasta"].items() if key != "events"}
    assert streamed_text(chunks) == told[-1]["report"]["text"]


def test_the_user_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Guards who looks for one caller's requests, and the log against a name that looks like another line."""
    with caplog.at_level("INFO", "pasta_ray.serve.service"):
        post(chat("hello", user="eve\nINFO fine", safety_identifier="adam"))
        post(chat("hello", user="eve\nINFO fine"))
    lines = [TextFormatter().format(record) for record in caplog.records if record.message == "answered"]
    assert " user=adam model=" in lines[0]
    assert r" user='eve\nINFO fine' model=" in lines[1]


def described(body: type[Any]) -> set[str]:
    return set(body.model_fields)


UNDECLARED = {  # refused as unknown fields, by test_http
    "function_call",
    "functions",
    "parallel_tool_calls",
    "prompt_cache_options",
    "tool_choice",
    "tools",
    "web_search_options",
}


def test_every_field_of_openais_client_has_been_decided_on() -> None:
    """Guards the table in docs/http.md against fields that OpenAI adds: this fails with the client that knows them."""
    chat_fields = set(chat_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert chat_fields - described(ChatBody) == UNDECLARED
    assert described(ChatBody) - chat_fields == {"pasta"}
    fields = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert fields <= described(CompletionBody)
    assert described(CompletionBody) - fields == {"pasta"}
    assert openai.__version__


async def count(name: str, to: int, closed: list[str], step_s: float = 0.0) -> AsyncGenerator[str, None]:
    try:
        for number in range(to):
            await asyncio.sleep(step_s)
            yield f"{name}{number}"
        if step_s:
            raise ValueError(name)
    finally:
        closed.append(name)


def test_merged_streams_are_all_closed_however_it_ends() -> None:
    """Guards against streams that go on for nobody."""

    async def scenario() -> None:
        closed: list[str] = []
        items = [item async for item in merged([count("a", 2, closed), count("b", 3, closed)])]
        assert sorted(items) == ["a0", "a1", "b0", "b1", "b2"]
        assert [item for item in items if item[0] == "b"] == ["b0", "b1", "b2"]
        assert sorted(closed) == ["a", "b"]

        closed.clear()
        stream = merged([count("a", 5, closed), count("b", 5, closed)])
        await anext(stream)
        await stream.aclose()
        assert sorted(closed) == ["a", "b"]

        closed.clear()
        with pytest.raises(ValueError, match="b"):
            async for _ in merged([count("a", 10**9, closed), count("b", 1, closed, 0.001)]):
                pass
        assert sorted(closed) == ["a", "b"]

    asyncio.run(scenario())
