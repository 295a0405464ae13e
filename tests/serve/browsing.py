"""A real browser, and a service that it can reach: uvicorn in a thread, with the routes that Ray Serve hosts."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Runs in the page before its own scripts. Of every change it keeps what the open bodies hold, and all text ever seen.
WATCH = """
window.seen = { texts: new Set(), open: [] };
new MutationObserver(() => {
  if (!document.body) return;
  const openBodies = [...document.querySelectorAll("article:first-child .segment.open[data-number]")];
  seen.open.push(openBodies.map((span) => span.textContent));
  seen.texts.add(document.body.innerText);
  seen.texts.add(document.querySelector("article .text")?.textContent ?? "");
}).observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
"""


def find_browser() -> str | None:
    """A Chromium of this machine's own, else Playwright's, where there is one."""
    from playwright.sync_api import sync_playwright

    if found := next(filter(None, map(shutil.which, BROWSERS)), None):
        return found
    with sync_playwright() as playwright:
        bundled = playwright.chromium.executable_path
    return bundled if Path(bundled).exists() else None


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve ``app`` over HTTP for as long as the context lasts; its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def grew_together(open_texts: list[list[str]]) -> int:
    """The most bodies that had text and were still open at the same moment."""
    return max((sum(map(bool, texts)) for texts in open_texts), default=0)


def seen(page: Any) -> tuple[list[str], list[list[str]]]:
    """All texts that the page has shown, and what the first answer's open bodies held, change by change."""
    found = page.evaluate("({ texts: [...seen.texts], open: seen.open })")
    return found["texts"], found["open"]
