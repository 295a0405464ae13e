"""Pictures of the playground at work: `python -m tests.serve.screenshots URL --out docs/images`.

The service at URL must serve a real model. Each picture is of a real run.
"""

import argparse
import io
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.serve.browsing import WATCH, find_browser, seen

PROMPT = "Give me five tips for sleeping well."
NUM_OPEN = 3
GROWN = f"""[...document.querySelectorAll(".segment.open[data-number]")]
  .filter((span) => span.textContent.length > 12).length >= {NUM_OPEN}"""
DONE = "/^Done/.test(document.querySelector('#status').textContent)"
TIMEOUT_S = 180


def take(url: str, out: Path, prompt: str = PROMPT) -> tuple[list[str], list[list[str]], str]:
    """Write three pictures into ``out``; returns what a page showed, as `seen` does, and the link to its run."""
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=find_browser()) as browser:

        def open_page(scheme: str, width: int, height: int) -> Any:
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})  # type: ignore[arg-type]
            page.add_init_script(WATCH)
            page.goto(url)
            _wait(page, "document.querySelector('#model').options.length > 0")
            page.fill("#prompt", prompt)
            return page

        def run(page: Any, until: str) -> None:
            page.press("#prompt", "Control+Enter")
            page.evaluate("document.activeElement.blur()")
            _wait(page, until)

        light = open_page("light", 1200, 900)
        run(light, DONE)  # the first answer after a start is a slow one
        run(light, GROWN)
        _save(light, out / "playground-light.png")
        _wait(light, DONE)
        dark = open_page("dark", 1200, 900)
        run(dark, DONE)
        _save(dark, out / "playground-dark.png", full_page=True)
        narrow = open_page("light", 390, 844)
        run(narrow, GROWN)
        narrow.evaluate("document.querySelector('#answers').scrollIntoView()")
        _save(narrow, out / "playground-narrow.png")
        dark.click("#share")
        _wait(dark, "location.hash !== ''")
        return *seen(dark), dark.url


def _save(page: Any, path: Path, **options: Any) -> None:
    """In 256 colours, which are enough for text and far fewer bytes."""
    picture = Image.open(io.BytesIO(page.screenshot(**options)))
    picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def _wait(page: Any, condition: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not page.evaluate(condition):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"never came true in {TIMEOUT_S} s: {condition}; the page says {page.inner_text('main')!r}"
            )
        page.wait_for_timeout(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="where the service answers, such as http://127.0.0.1:8000/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--prompt", default=PROMPT)
    arguments = parser.parse_args()
    _, _, link = take(arguments.url, arguments.out, arguments.prompt)
    print(f"{arguments.out}: three pictures; a link to the run of the dark one has {len(link)} characters")


if __name__ == "__main__":
    main()
