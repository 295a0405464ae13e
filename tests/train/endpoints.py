"""A chat endpoint on a free port, whose replies a test decides."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

Reply = str | Response
Chat = list[dict[str, str]]


class Stub:
    """``answer`` gives the reply to a chat; a Response goes out as it is. ``requests`` holds the bodies received."""

    def __init__(self, answer: Callable[[Chat], Reply]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.base_url = ""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            self.requests.append(body)
            self.keys.append(request.headers.get("authorization"))
            reply = self.answer(body["messages"])
            return reply if isinstance(reply, Response) else completion(reply)

        return app


def completion(text: str, **choice: Any) -> Response:
    """A chat completion of one choice, which used 100 tokens of prompt and 20 of answer."""
    message = {"role": "assistant", "content": text}
    content = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return Response(json.dumps(content), media_type="application/json")


@contextmanager
def serving(answer: Callable[[Chat], Reply]) -> Iterator[Stub]:
    """The endpoint, in a thread of this process, for as long as the block runs."""
    stub = Stub(answer)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        stub.base_url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        server = uvicorn.Server(uvicorn.Config(stub.app(), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        bound.listen()
        thread.start()
        try:
            yield stub
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def free_port() -> int:
    """A port at which nobody listens just now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
    return port
