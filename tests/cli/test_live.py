"""Answers on a terminal of a fixed size, while they are written and after."""

import io
import random

import pytest
from rich.console import Console

from pasta_ray.cli import live
from pasta_ray.cli.live import COLOURS, GrowingText, LiveAnswer
from pasta_ray.cli.timeline import timeline
from pasta_ray.engine.messages import (
    BranchClosed,
    BranchReport,
    Delta,
    Event,
    Events,
    Finished,
    Parallel,
    PromiseOpened,
    Report,
    Synced,
    Timing,
    Usage,
)
from pasta_ray.engine.reading import Reader
from tests.cli.screen import Screen, terminal

ANSWER: list[Event] = [
    Delta("0", "Two ways:\n1.", 4),
    PromiseOpened("0.1", "0", "Layers", 20),
    Delta("0", "\n2.", 2),
    PromiseOpened("0.2", "0", "Movement", 20),
    Delta("0.2", " Walk about", 2),
    Delta("0.1", " Wear several", 2),
    Delta("0.2", " every hour.", 3),
    BranchClosed("0.2", "stop"),
    Delta("0.1", " thin layers.", 3),
    BranchClosed("0.1", "stop"),
    Synced(),
    Delta("0", "\nEither works.", 3),
]
TEXT = "Two ways:\n1. Wear several thin layers.\n2. Walk about every hour.\nEither works."


def report(*branches: BranchReport, promises: int = 0, finish_reason: str = "stop") -> Report:
    return Report(
        "r", "pasta", TEXT, TEXT, finish_reason, Usage(9, 150, 20), Timing(3.2, 0.1, 0.1),  # type: ignore[arg-type]
        Parallel(promises, 1, promises + 1, 80, 150, 1.875), branches,
    )  # fmt: skip


def branch(id_: str, first: int, last: int, topic: str | None = None) -> BranchReport:
    parent = "0" if id_ != "0" else None
    return BranchReport(id_, parent, topic, 20, last - first + 1, first, last, 0.0, 1.0, "local", "stop")


@pytest.fixture(autouse=True)
def _always_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "DRAW_S", 0.0)


def test_bodies_grow_in_their_places_and_colours() -> None:
    """Guards the point of it: two bodies are seen half written at once, each in a colour of its own."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=60, height=20, color_system="truecolor", _environ={}
    )
    growing = GrowingText()
    for event in ANSWER[:6]:
        growing.see(event)
    with console.capture() as capture:
        console.print(growing)
    drawn = capture.get()
    for number, text in ((1, " Wear several"), (2, " Walk about")):
        red, green, blue = (int(COLOURS[number - 1][at : at + 2], 16) for at in (1, 3, 5))
        assert f"\x1b[1;38;2;{red};{green};{blue}m{text}\x1b[0m" in drawn
    plain = [line.rstrip() for line in growing.take_lines().plain.splitlines()]
    assert plain == ["Two ways:"], "whole lines before the first open body, and no more"


@pytest.mark.parametrize("num_events", range(len(ANSWER) + 1))
def test_what_was_shown_stays_wherever_the_answer_breaks_off(num_events: int) -> None:
    """Guards against lines twice, lines lost, and a caret that stays, at every point where Ctrl-C may come."""
    screen = Screen()
    with LiveAnswer(terminal(screen)) as shown:
        for event in ANSWER[:num_events]:
            shown.see(Events("r", (event,)))
    if num_events == len(ANSWER):
        assert shown.text == TEXT
    assert screen.text.rstrip("\n") == "\n".join(line.rstrip() for line in shown.text.splitlines())


@pytest.mark.parametrize("height", [5, 12, 40])
@pytest.mark.parametrize("seed", range(5))
def test_any_answer_stands_whole_on_any_terminal(seed: int, height: int) -> None:
    """Guards terminals that are too small for what is being written: random answers of up to eight bodies."""
    rng = random.Random(seed)
    screen, reader, open_branches, num_bodies = Screen(width=30, height=height), Reader(), ["0"], 0
    pieces: list[str] = []
    with LiveAnswer(terminal(screen)) as shown:
        for _ in range(150):
            name = rng.choice(open_branches)
            choice = rng.random()
            if choice < 0.06 and name == "0" and num_bodies < 8:
                num_bodies += 1
                open_branches.append(f"0.{num_bodies}")
                event: Event = PromiseOpened(open_branches[-1], "0", "topic", 10)
            elif choice < 0.09 and name != "0":
                open_branches.remove(name)
                event = BranchClosed(name, "stop")
            else:
                event = Delta(name, rng.choice(["word ", "long-word ", "x\n", "\n\n", "y"]), 1)
            message = Events("r", (event,))
            shown.see(message)
            pieces.append(reader.read(message))
        done = Events("r", (Finished(report()),))
        shown.see(done)
        pieces.append(reader.read(done))
    text = "".join(pieces)
    assert shown.text == text
    assert "".join(screen.text.split()) == "".join(text.split())


def test_a_model_commands_no_terminal() -> None:
    """Guards against text that moves the cursor, sets a title or writes to a clipboard."""
    screen = Screen()
    with LiveAnswer(terminal(screen)) as shown:
        shown.see(Events("r", (Delta("0", "a\x1b[2Jb\x9b1Ac\x07d\r\x00[bold]e[/bold] 👩\u200d🚀 \ud800", 1),)))
    assert screen.text.startswith("a\ufffd[2Jb\ufffd1Ac\ufffdd\ufffd\ufffd[bold]e[/bold]")


def test_the_timeline_has_a_bar_a_branch() -> None:
    screen = Screen(width=100)
    bodies = [branch("0.10", 41, 80, "Last"), branch("0.2", 11, 50, "A topic of many words")]
    terminal(screen).print(timeline(report(branch("0", 1, 80), *bodies, promises=2)))
    lines = screen.text.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["main", "1", "2"], "in the order of their forks"
    bars = [line.count("█") for line in lines[:3]]
    assert abs(bars[1] - bars[0] / 2) <= 1
    assert abs(bars[2] - bars[0] / 2) <= 1
    assert lines[3] == "pasta: 150 tokens in 3.20 s; 2 promises, critical path 80 of 150 steps: 1.88× in theory"
    alone = Screen(width=70)
    terminal(alone).print(timeline(report(branch("0", 1, 80), finish_reason="length")))
    assert alone.text == "pasta: 150 tokens in 3.20 s, cut off at the limit\n"
