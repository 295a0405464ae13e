"""The app over a real socket: uvicorn in a thread of this process, with the fake decoder behind it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.service import Service
from tests.fakes import FakeTokenizer, fake_models
from tests.serve.test_http import LocalBackend


@dataclass(frozen=True)
class Listening:
    port: int
    backend: LocalBackend

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settles_at_zero(self) -> bool:
        """Whether no request, branch or slot is in use, at once or soon."""
        for _ in range(100):
            stats = self.backend.loop.stats()
            if (stats.num_requests, stats.num_branches, stats.num_slots) == (0, 0, 0):
                return True
            time.sleep(0.02)
        return False


@contextmanager
def listening(keys: frozenset[str] = frozenset(), **config: Any) -> Iterator[Listening]:
    settings, backend = ServeConfig(**config), LocalBackend()
    app = create_app(Service(settings, fake_models(settings), backend, FakeTokenizer()), keys)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        # As Ray Serve sets it up: no log, no lifespan.
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", access_log=False))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        bound.listen()
        thread.start()
        try:
            yield Listening(bound.getsockname()[1], backend)
        finally:
            server.should_exit = True
            thread.join(timeout=10)
            backend.loop.stop()
