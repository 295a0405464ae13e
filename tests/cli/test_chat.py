"""`pasta-ray chat`, over the fake decoder, in this process and behind a service."""

import asyncio
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.cli import answering, main
from pasta_ray.cli.answering import Options
from pasta_ray.cli.conversation import Conversation
from pasta_ray.cli.speaking import LocalSpeaker
from pasta_ray.engine.config import DraftConfig
from pasta_ray.engine.messages import Sampling
from pasta_ray.lang import TagMap
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.security import key_digest
from pasta_ray.serve.service import Service
from tests.cli.screen import Screen, terminal
from tests.fakes import FakeDecoder, FakeTokenizer, fake_models
from tests.serve.browsing import listening
from tests.serve.test_http import LocalBackend

Run = Callable[..., int]
KEY = "a-key-that-is-long-enough"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `chat` with lines on its standard input; gives the exit status."""
    monkeypatch.setattr(answering, "LoadDecoder", lambda *_: FakeDecoder)
    monkeypatch.setattr(answering, "LoadTokenizer", lambda _: FakeTokenizer)

    def run(lines: str, *args: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        try:
            main(["chat", *args])
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    return run


def test_piped_lines_are_answered_plainly(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards scripts: no colour, no prompt, nothing drawn twice; notes go to the other stream."""
    assert run("hello fork a\n\n/help\nbye\n") == 0
    out, err = capsys.readouterr()
    assert out == "hello one two three a \nbye \n"
    assert "/method  [NAME]" in err


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        ("/nope\n", 0, "there is no command '/nope'; allowed: /help, /method, /reset, /timeline, /quit"),
        ("/method magic\n", 0, "method is 'magic'; allowed with this model: sequential, pasta, "),
        ("refuse\n", 0, "error: the prompt is refused"),
        ("crash\n", 0, "the kernel is out of luck"),
    ],
    ids=str,
)
def test_what_goes_wrong_ends_no_conversation(
    run: Run, capsys: pytest.CaptureFixture[str], lines: str, status: int, message: str
) -> None:
    assert run(f"{lines}still here\n/quit\nnever\n") == status
    out, err = capsys.readouterr()
    assert message in " ".join(err.split())
    assert out.strip().splitlines() == ["still here "[:-1]]


def test_options_that_cannot_be_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for args, message in (
        (("--method", "magic"), "method is 'magic'"),
        (("--api-key-env", "X"), "--api-key-env goes with --base-url"),
        (("--base-url", "http://127.0.0.1:9", "--api-key-env", "NO_SUCH"), "the environment has no NO_SUCH"),
        (("--base-url", "http://127.0.0.1:9"), "the service cannot be reached"),
    ):
        assert run("hello\n", *args) != 0
        assert message in capsys.readouterr().err


class Remembering(DecodeLoop):
    """A decode loop that keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(FakeDecoder)
        self.asked: list[tuple[tuple[str, str], ...]] = []
        self.methods: list[str] = []

    def decode(self, request: Any) -> Any:
        self.asked.append(request.messages)
        self.methods.append(request.method)
        return super().decode(request)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def talk(runner: asyncio.Runner, *lines: str, system: str | None = None) -> tuple[Remembering, Screen, Screen]:
    """A conversation on a terminal: what was asked, and what stood on the two screens."""
    options = Options("pasta", 4000, 4, Sampling(), DraftConfig())
    loop, screen, notes = Remembering(), Screen(width=70), Screen(width=70)
    speaker = LocalSpeaker(loop, FakeTokenizer(), options, TagMap.after(90))
    unread = iter(lines)

    def read() -> str:
        try:
            return next(unread)
        except StopIteration:
            raise EOFError from None

    Conversation(speaker, runner, terminal(screen), terminal(notes), system).run(read)
    loop.stop()
    return loop, screen, notes


def test_a_conversation_is_kept_until_it_is_reset(runner: asyncio.Runner) -> None:
    loop, screen, _ = talk(
        runner, "first fork", "refuse", "second", "/method sequential", "fork", "/reset", "new", system="be brief"
    )
    system, first = ("system", "be brief"), [("user", "first fork"), ("assistant", "first one two three ")]
    second = [("user", "second"), ("assistant", "second ")]
    assert [list(asked) for asked in loop.asked] == [
        [system, ("user", "first fork")],
        [system, *first, ("user", "refuse")],
        [system, *first, ("user", "second")],
        [system, *first, *second, ("user", "fork")],
        [system, ("user", "new")],
    ]
    assert loop.methods == ["pasta"] * 3 + ["sequential"] * 2
    lines = screen.text.splitlines()
    assert lines[0] == "first one two three"
    assert "1 topic 0.1 " in screen.text
    assert any(line.startswith("pasta: 5 tokens in 0.") for line in lines)


@pytest.mark.parametrize("handler", [signal.default_int_handler, lambda *_: None], ids=["python's", "a library's"])
def test_ctrl_c_stops_an_answer_and_not_the_program(runner: asyncio.Runner, handler: Any) -> None:
    """Guards the conversation: what was shown stays in it, the slots are freed, and the next line is answered, whoever
    has handled Ctrl-C before."""

    def interrupt() -> None:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, handler)
    try:
        threading.Thread(target=interrupt).start()
        loop, screen, notes = talk(runner, "endless", "/timeline", "and on")
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert notes.text.splitlines()[0] == "stopped"
    assert loop.stats().num_slots == 0
    said = loop.asked[1][1]
    assert said[0] == "assistant"
    assert said[1].startswith("word word ")
    assert "".join(screen.text.split()) == "".join(said[1].split()) + "andon"


def test_a_served_endpoint_answers_as_this_process_does(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, backend = ServeConfig(), LocalBackend()
    service = Service(settings, fake_models(settings), backend, FakeTokenizer())
    monkeypatch.setenv("THE_KEY", KEY)
    with listening(create_app(service, frozenset({key_digest(KEY)}))) as url:
        assert (
            run("hello fork a\nmore\n/method sequential\nlast fork\n", "--base-url", url, "--api-key-env", "THE_KEY")
            == 0
        )
        assert capsys.readouterr().out == "hello one two three a \nmore \nlast fork \n"
        assert [request.model for request in backend.requests] == ["smollm2-pasta"] * 3
        assert backend.requests[1].messages == (
            ("user", "hello fork a"),
            ("assistant", "hello one two three a "),
            ("user", "more"),
        )
        assert run("x", "--base-url", url, "--api-key-env", "THE_KEY", "--model", "other") == 2
        assert "--model is 'other'; served: smollm2-pasta" in capsys.readouterr().err
        assert run("x", "--base-url", url) != 0
        assert "an API key is needed" in capsys.readouterr().err
