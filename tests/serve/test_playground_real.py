"""The playground over the real service and the real model, in a real browser."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'pasta-ray[browser]'")

from tests.serve.browsing import find_browser, grew_together

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.real_model, pytest.mark.timeout(900)]

MOST_BYTES = 200_000


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """`pasta-ray serve` with its defaults, as a user starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    log = tmp_path / "serve.log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "pasta_ray", "serve", "--port", str(port), "--ray-address", "local"]
        service = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert service.poll() is None, log.read_text()
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/"
        finally:
            service.send_signal(signal.SIGINT)
            service.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False


def test_the_real_answer_is_seen_being_written_in_parallel(url: str, tmp_path: Path) -> None:
    """Guards the pictures of docs/playground.md, and what they show: several bodies at once, and no tag."""
    if find_browser() is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or playwright install chromium")
    from tests.serve.screenshots import take

    texts, open_texts, link = take(url, tmp_path / "images")
    assert grew_together(open_texts) >= 2
    tag = re.compile(r"<\|?/?(promise|tokens|async|sync)\b|\|>")
    assert texts
    assert not [text for text in texts if tag.search(text)]
    assert "run=" in link, "an answer of usual length fits into a link"
    pictures = sorted((tmp_path / "images").iterdir())
    assert [picture.name for picture in pictures] == [f"playground-{name}.png" for name in ("dark", "light", "narrow")]
    assert all(picture.stat().st_size <= MOST_BYTES for picture in pictures)
