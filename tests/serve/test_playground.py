"""The playground in a real browser, over the routes without Ray."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'pasta-ray[browser]'")

from pasta_ray.actors.decode_loop import DecodeLoop  # noqa: E402
from pasta_ray.actors.loading import LoadTokenizer, TokenizerLike  # noqa: E402
from pasta_ray.engine.config import EngineConfig  # noqa: E402
from pasta_ray.lang import TAG_NAMES  # noqa: E402
from pasta_ray.serve.config import ServeConfig  # noqa: E402
from pasta_ray.serve.http import create_app  # noqa: E402
from pasta_ray.serve.models import Models, read_models  # noqa: E402
from pasta_ray.serve.security import key_digest  # noqa: E402
from pasta_ray.serve.service import Service  # noqa: E402
from tests.fakes import FakeTokenizer, MakeFakeDecoder, fake_models  # noqa: E402
from tests.serve.browsing import WATCH, find_browser, grew_together, listening, seen  # noqa: E402
from tests.serve.test_http import TWO, LocalBackend  # noqa: E402
from tests.serve.test_whole import InProcess, engine_config  # noqa: E402, F401  a fixture

pytestmark = pytest.mark.browser

KEY = "a-key-that-is-long-enough"
FORKS = "Before fork fork fork after and some more words"
BODY = "one two three "


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or playwright install chromium")
    with sync_api.sync_playwright() as playwright, playwright.chromium.launch(executable_path=executable) as browser:
        yield browser


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open pages; at the end none of them may have raised, or broken its own security policy."""
    contexts, wrong = [], []

    def open_page(url: str, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("console", lambda message: wrong.append(message.text) if "Policy" in message.text else None)
        page.add_init_script(WATCH)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


class Slow(LocalBackend):
    """Writes slowly enough to be watched."""

    def __init__(self, step_s: float = 0.03) -> None:
        super().__init__()
        self.loop = DecodeLoop(MakeFakeDecoder(step_s))


@contextmanager
def serving(
    backend: Any = None,
    keys: frozenset[str] = frozenset(),
    tokenizer: TokenizerLike | None = None,
    served: Models | None = None,
    **config: Any,
) -> Iterator[str]:
    settings = ServeConfig(**config)
    service = Service(settings, served or fake_models(settings), backend or Slow(), tokenizer or FakeTokenizer())
    with listening(create_app(service, keys)) as url:
        yield url


def until(page: Any, condition: str) -> None:
    """Wait for ``condition``, which Playwright's own waiting would evaluate in a way that the page's policy forbids."""
    deadline = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never came true: {condition}"
        page.wait_for_timeout(20)


def ask(page: Any, prompt: str, **fields: str) -> None:
    until(page, "document.querySelector('#model').options.length > 0")
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        if name in ("model", "order"):
            page.select_option(f"#{name}", value)
        else:
            page.fill(f"#{name.replace('_', '-')}", value)
    page.press("#prompt", "Control+Enter")


def finished(page: Any) -> None:
    until(page, "/^(Done|Stopped)/.test(document.querySelector('#status').textContent)")


def answers(page: Any) -> list[str]:
    texts: list[str] = page.eval_on_selector_all("article .text", "all => all.map((one) => one.textContent)")
    return texts


def test_bodies_grow_at_the_same_time_and_the_answer_is_in_document_order(opened: Callable[..., Any]) -> None:
    """Guards the point of the page: three bodies are seen to be written at once, each in a colour of its own, and
    nothing moves when they end."""
    with serving() as url:
        page = opened(url)
        ask(page, FORKS)
        finished(page)
        parallel, sequential = answers(page)
        assert parallel == f"Before {BODY}{BODY}{BODY}after and some more words "
        assert sequential == f"{FORKS} "
        assert grew_together(seen(page)[1]) == 3
        colours = "all => new Set(all.map((one) => getComputedStyle(one, '::before').color)).size"
        assert page.eval_on_selector_all(".segment[data-number]", colours) == 3
        assert page.locator(".segment.open").count() == 0
        lanes = page.locator(".lane").all_inner_texts()
        assert [lane.split() for lane in lanes[1:4]] == [[str(i), "topic", f"0.{i}", "3", "tok"] for i in (1, 2, 3)]
        assert page.locator(".lane .ticks").nth(1).get_attribute("d").count("M") == 3
        assert "critical path" in page.inner_text("#figures")
        assert page.inner_text("#status").startswith("Done: by the clock ")


def test_no_tag_is_ever_seen(opened: Callable[..., Any], engine_config: EngineConfig) -> None:  # noqa: F811
    """Guards the reader: a random model writes tags in every way there is, and whatever the page showed at any moment
    is looked at."""
    settings = ServeConfig(model=engine_config.model, adapter=None, served_model_name="small")
    backend = InProcess({"small": engine_config})
    with serving(backend, tokenizer=LoadTokenizer(engine_config)(), served=read_models(settings)) as url:
        page = opened(url)
        num_promises = 0
        for seed in range(4):
            ask(page, f"question {seed}", temperature="1", seed=str(seed), max_tokens="40")
            finished(page)
            body = {"model": "small", "messages": [{"role": "user", "content": f"question {seed}"}]}
            whole = httpx.post(
                f"{url}v1/chat/completions", json=body | {"temperature": 1, "seed": seed, "max_tokens": 40}
            )
            assert answers(page)[0] == whole.json()["pasta"]["text"]
            num_promises += whole.json()["pasta"]["parallel"]["num_promises"]
        texts, open_texts = seen(page)
    assert num_promises > 4
    assert len(open_texts) > 50
    tag = re.compile("|".join(map(re.escape, TAG_NAMES)) + r"|</?(promise|async|sync)\b|\|>")
    assert not [text for text in texts if tag.search(text)]


def test_text_never_becomes_html(opened: Callable[..., Any]) -> None:
    """Guards against a model, or a prompt that it repeats, that writes into the page; `opened` looks for dialogs."""
    evil = "<img/src=x/onerror=alert(1)> <script>alert(2)</script> <b>bold</b>"
    with serving() as url:
        page = opened(url)
        ask(page, evil)
        finished(page)
        assert answers(page)[0] == f"{evil} "
        assert page.locator("article img, article script, article b").count() == 0
        policy = httpx.get(url).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        refused = page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; } }"
        )
        assert refused == "TypeError"


@pytest.mark.parametrize(
    ("prompt", "message"), [("refuse", "the prompt is refused"), ("one two crash", "the kernel is out of luck")]
)
def test_what_the_service_says_is_wrong_is_shown(opened: Callable[..., Any], prompt: str, message: str) -> None:
    """A refusal before the answer, and a fault in the middle of it."""
    with serving() as url:
        page = opened(url)
        ask(page, prompt)
        page.wait_for_selector("#error:visible")
        assert message in page.inner_text("#error")
        assert page.inner_text("article .state >> nth=0") == "failed"
        assert page.is_disabled("#stop")
        ask(page, "all is well")
        finished(page)
        assert page.is_hidden("#error")


def test_a_service_that_is_away_is_said_to_be(opened: Callable[..., Any]) -> None:
    with serving(Slow()) as url:
        page = opened(url)
        ask(page, "first")
        finished(page)
    ask(page, "second")
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#error") == "The service does not answer. Is it running?"


EVENTS = [
    {"type": "delta", "branch": "0", "text": "Grüße ", "num_tokens": 2},
    {"type": "astonishment", "branch": "0"},
    {"type": "delta", "branch": "0", "text": "👩‍🚀", "num_tokens": 3},
]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, None, "the answer broke off in the middle."),
        (502, "<html>bad gateway</html>", "The service answered with status 502."),
        (429, {"error": {"message": "the queue is full", "param": None}}, "the queue is full Try again in 7 s."),
    ],
    ids=["breaks off", "a proxy's page", "overload"],
)
def test_other_servers_and_newer_ones(opened: Callable[..., Any], status: int, body: Any, message: str) -> None:
    """Guards against what this service does not send today: events of a new type, an end without [DONE], a proxy's
    page instead of an error."""

    def answer(route: Any) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        if status == 200:
            chunks = [{"choices": [], "pasta": {"events": [event]}} for event in EVENTS]
            text = "".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks)
        route.fulfill(status=status, headers={"Retry-After": "7"} if status == 429 else {}, body=text)

    with serving() as url:
        page = opened(url)
        page.route("**/v1/chat/completions", answer)
        ask(page, "hello")
        page.wait_for_selector("#error:visible")
        assert page.inner_text("#error").lower() == message.lower()
        assert answers(page)[0] == ("Grüße 👩‍🚀" if status == 200 else "")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(opened: Callable[..., Any]) -> None:
    """Guards deployments with keys: their page is open, their API is not, and the key goes into no link."""
    with serving(keys=frozenset({key_digest(KEY)})) as url:
        assert httpx.get(f"{url}v1/models").status_code == 401
        page = opened(url)
        page.wait_for_selector("#key-form:visible")
        for key in ("wrong", KEY):
            page.fill("#key", key)
            page.press("#key", "Enter")
            page.wait_for_selector(f"#key-form:{'visible' if key == 'wrong' else 'not(:visible)'}", state="attached")
            page.wait_for_timeout(200)
        ask(page, "hello fork")
        finished(page)
        assert answers(page)[0] == f"hello {BODY}"
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        assert KEY in page.evaluate("JSON.stringify(sessionStorage)")
        page.click("#share")
        until(page, "location.hash.includes('run=')")
        assert KEY not in page.url
        assert KEY not in page.content()


def test_escape_stops_both_and_frees_their_slots(opened: Callable[..., Any]) -> None:
    backend = Slow()
    with serving(backend) as url:
        page = opened(url)
        ask(page, "fork fork endless", order="at-once", max_tokens="4000")
        until(page, "document.querySelectorAll('article .text')[1].textContent.length > 20")
        page.keyboard.press("Escape")
        finished(page)
        assert page.locator(".state").all_inner_texts() == ["stopped", "stopped"]
        for _ in range(100):
            if backend.loop.stats().num_slots == 0:
                break
            page.wait_for_timeout(20)
        assert backend.loop.stats().num_slots == 0
        assert page.is_disabled("#share")


def test_by_default_the_second_waits_for_the_first(opened: Callable[..., Any]) -> None:
    """Guards honest times: two at once slow each other down."""
    backend = Slow()
    with serving(backend) as url:
        page = opened(url)
        ask(page, FORKS)
        until(page, "document.querySelector('article .text').textContent.length > 10")
        assert len(backend.requests) == 1
        finished(page)
        assert [request.method for request in backend.requests] == ["pasta", "sequential"]
        assert page.is_hidden("#caveat")
        ask(page, FORKS, order="at-once")
        until(page, "[...document.querySelectorAll('.state')].every((one) => one.textContent.startsWith('writing'))")
        finished(page)
        assert "slowed each other down" in page.inner_text("#caveat")


def test_a_link_holds_the_run_and_asks_the_service_nothing(opened: Callable[..., Any]) -> None:
    """Guards whoever follows a link: it shows what was recorded, says so, and spends no time of the service's."""
    backend = Slow()
    with serving(backend) as url:
        page = opened(url)
        ask(page, f"{FORKS} & more #1", temperature="0.5", seed="7")
        finished(page)
        expected, num_asked = answers(page), len(backend.requests)
        page.fill("#seed", "8")  # for the next run, not for this one
        page.click("#share")
        until(page, "location.hash.includes('run=')")
        link = page.url
        other = opened(link)
        finished(other)
        assert answers(other) == expected
        assert [other.input_value(f"#{name}") for name in ("prompt", "temperature", "seed")] == [
            f"{FORKS} & more #1",
            "0.5",
            "7",
        ]
        assert "recorded elsewhere" in other.inner_text("#caveat")
        other.click("#replay")
        until(other, "document.querySelectorAll('.segment.open[data-number]').length === 3")
        finished(other)
        assert answers(other) == expected
        assert len(backend.requests) == num_asked
        packed = parse_qs(urlsplit(link).fragment)["run"][0]
        for broken in ("x", packed[:-40], packed[:40] + "A" + packed[41:]):
            third = opened(link.replace(packed, broken))
            third.wait_for_selector("#error:visible")
            assert "cannot be read" in third.inner_text("#error")
            assert third.input_value("#seed") == "7"


def test_the_model_is_chosen_and_decides_the_methods(opened: Callable[..., Any]) -> None:
    """Guards models without tags, which have nothing to compare, and links to models that are served elsewhere."""
    backend = Slow(0.0)
    with serving(backend, models=TWO) as url:
        page = opened(f"{url}#model=plain&prompt=hello")
        until(page, "document.querySelector('#model').value === 'plain'")
        assert page.locator("#model option").all_inner_texts() == ["quick", "plain"], "an alias is no model of its own"
        ask(page, "hello fork")
        finished(page)
        assert page.locator("article h2").all_inner_texts() == ["Sequential"]
        assert answers(page) == ["hello fork "]
        ask(page, "hello fork", model="quick")
        finished(page)
        assert [(request.model, request.method) for request in backend.requests] == [
            ("plain", "sequential"),
            ("quick", "pasta"),
            ("quick", "sequential"),
        ]
        other = opened(f"{url}#model=elsewhere")
        other.wait_for_selector("#error:visible")
        assert other.inner_text("#error") == "The link's model, elsewhere, is not served here."


def test_dark_and_narrow(opened: Callable[..., Any]) -> None:
    """Guards phones, on which nothing may hang over the edge, and eyes at night; the button overrules the system."""
    background = "getComputedStyle(document.body).backgroundColor"
    with serving() as url:
        light, dark = (opened(url, color_scheme=scheme) for scheme in ("light", "dark"))
        assert light.evaluate(background) != dark.evaluate(background)
        light.click("#theme")
        assert light.evaluate(background) == dark.evaluate(background)
        light.reload()
        assert light.evaluate(background) == dark.evaluate(background)
        dark.set_viewport_size({"width": 340, "height": 700})
        ask(dark, f"{FORKS} {'long' * 40}")
        finished(dark)
        assert dark.evaluate("document.scrollingElement.scrollWidth") <= 340
        boxes = [dark.locator(f"article >> nth={index}").bounding_box() for index in (0, 1)]
        assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_in_any_colour_can_be_read(opened: Callable[..., Any], theme: str) -> None:
    """Guards contrast: 4.5 to 1 for every branch's colour, as WCAG 2 asks of text."""
    script = """() => {
      const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
      const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
      const luminance = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((part) => linear(part / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const card = luminance(getComputedStyle(document.querySelector("#form")).backgroundColor);
      return Array.from({ length: 8 }, (_, index) => {
        const one = document.createElement("i");
        one.dataset.colour = index + 1;
        document.body.append(one);
        one.style.color = "var(--branch)";
        const own = luminance(getComputedStyle(one).color);
        return (Math.max(card, own) + 0.05) / (Math.min(card, own) + 0.05);
      });
    }"""
    with serving() as url:
        contrasts = opened(url, color_scheme=theme).evaluate(script)
    assert len(contrasts) == 8
    assert min(contrasts) >= 4.5
