"""Reports: what is in them, what survives a judge that fails, and what two of them differ in."""

import json
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.eval.answers import Answer, read_answers
from pasta_ray.eval.diff import diff_reports, read_report
from pasta_ray.eval.figures import EvalReport
from pasta_ray.eval.folder import EvalFolder
from pasta_ray.eval.markdown import table
from pasta_ray.eval.plan import EvalPlan
from pasta_ray.eval.plots import pareto_front
from pasta_ray.eval.prompts import Prompt, PromptSet
from pasta_ray.train.jsonl import to_line
from tests.eval.reports import LOOP, answer, body, report, run
from tests.eval.test_run import MACHINE
from tests.train.endpoints import free_port, serving

NUM = 12
PROMPTS = tuple(
    Prompt(id=f"p{n}", instruction=f"i{n}", category="abc"[n % 3], instruction_difficulty=0.1 * n) for n in range(NUM)
)


def answers(factor: float = 2.0) -> list[Answer]:
    found = []
    for n in range(NUM):
        found.append(answer(f"p{n}", "sequential", report(2.0 + n, text=f"BAD {n}", method="sequential")))
        text = LOOP if n == 0 else f"GOOD {n}"
        bodies = [body(20, 12, number=1), body(20, 25, number=2)]
        found.append(answer(f"p{n}", "pasta", report((2.0 + n) / factor, text=text, steps=5, tags=4, bodies=bodies)))
    return found


def evaluation(path: Path, given: list[Answer], **quality: Any) -> EvalFolder:
    """A folder as a run leaves it."""
    plan = EvalPlan.model_validate(
        {
            "prompts": "prompts.jsonl",
            "systems": [{"name": name, "method": name} for name in ("sequential", "pasta")],
            "quality": quality or None,
        }
    )
    folder = EvalFolder(path)
    with folder.lock():
        folder.claim(plan, PromptSet(PROMPTS, "digest"))
        folder.sit_down(MACHINE)
        folder.answers.write_text("".join(to_line(one.model_dump(mode="json")) for one in given), encoding="utf-8")
    return folder


def test_a_report_says_it_all_with_and_without_loops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(tmp_path / "e", answers())
    assert run("report", folder.path, "--json") == 0
    found = EvalReport.model_validate_json(capsys.readouterr().out)
    pasta = found.systems["pasta"]
    assert pasta.speed.all.wall_speedup is not None
    assert pasta.speed.all.wall_speedup.value == pytest.approx(2.0)
    assert (pasta.speed.all.num_prompts, pasta.speed.clean.num_prompts) == (NUM, NUM - 1)
    assert pasta.counts.loops == 1
    assert pasta.speed.clean.length_error is not None
    assert pasta.speed.clean.length_error.num_bodies == 2 * (NUM - 1)
    assert pasta.speed.all.anatomy is not None
    assert (pasta.speed.all.anatomy.no_body, pasta.speed.all.anatomy.several_bodies) == (0.0, 2.0)
    assert list(pasta.by_category) == ["a", "b", "c"]
    assert pasta.by_category["a"].clean.num_prompts == NUM // 3 - 1
    assert found.complete
    assert found.judge is None
    assert read_report(folder.path) == found
    text = folder.markdown.read_text(encoding="utf-8")
    assert "| pasta | 12 | 2.00× [2.00, 2.00] |" in text
    assert "PASTA (2025)" in text
    assert "![speedups.png](speedups.png)" in text
    assert (folder.path / "speedups.png").read_bytes().startswith(b"\x89PNG")
    assert (folder.path / "anatomy.png").exists()
    assert not (folder.path / "pareto.png").exists(), "no quality, no curve"


def test_a_run_that_is_not_through_is_reported_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(tmp_path / "e", answers()[:5])
    assert run("report", folder.path, "--json") == 0
    found = EvalReport.model_validate_json(capsys.readouterr().out)
    assert not found.complete
    assert (found.systems["pasta"].counts.missing, found.systems["pasta"].speed.all.num_prompts) == (NUM - 2, 2)
    assert "Not all answers are there yet" in folder.markdown.read_text(encoding="utf-8")
    empty = evaluation(tmp_path / "empty", [])
    assert run("report", empty.path) == 0
    assert run("report", tmp_path / "nowhere") == 2


def test_a_report_is_of_the_prompts_that_the_latest_limit_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards a folder that held more: its other answers stay, and do not count."""
    folder = evaluation(tmp_path / "e", answers())
    with folder.lock():
        folder.claim(folder.read_told().plan, PromptSet(PROMPTS[:5], "digest"))
    assert run("report", folder.path, "--json") == 0
    found = EvalReport.model_validate_json(capsys.readouterr().out)
    assert found.complete
    assert {(system.counts.answers, system.counts.missing) for system in found.systems.values()} == {(5, 0)}
    assert len(read_answers(folder.answers)) == 2 * NUM


def test_quality_is_added_and_misses_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards verdicts read into nonsense, and a judge named without what it is worth."""

    def judge(chat: list[dict[str, str]]) -> str:
        text = chat[-1]["content"]
        if "i3\n" in text:
            return "both are fine"
        return "A" if text.index("BAD") > text.index("Answer B") else "B"

    with serving(judge) as stub:
        settings = {"judge": "llm", "base_url": stub.base_url, "judge_model": "m", "max_retries": 0}
        folder = evaluation(tmp_path / "e", answers(), **settings)
        assert run("report", folder.path, "--json") == 0
        found = EvalReport.model_validate_json(capsys.readouterr().out)
        asked = len(stub.requests)
        assert run("report", folder.path, "--json") == 0
        assert len(stub.requests) == asked, "verdicts are kept"
    assert found.judge is not None
    assert (found.judge.name, found.judge.human_agreement) == ("llm:m", None)
    quality = found.systems["pasta"].quality
    assert quality is not None
    assert (quality.all.num, quality.all.num_missed, quality.all.win_rate) == (NUM - 1, 1, 1.0)
    assert quality.clean.num == NUM - 2
    assert quality.all.length_controlled is not None
    assert found.systems["sequential"].quality is None, "nobody meets itself"
    text = folder.markdown.read_text(encoding="utf-8")
    assert "Judge: **llm:m**" in text
    assert "**not measured**" in text
    assert (folder.path / "pareto.png").exists()


def test_a_judge_that_cannot_be_reached_costs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the figures of speed against the failure of what comes after them."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    settings = {"judge": "llm", "base_url": url, "judge_model": "m", "max_retries": 0}
    folder = evaluation(tmp_path / "e", answers(), **settings)
    assert run("report", folder.path) == 1
    assert "cannot be reached" in capsys.readouterr().err
    found = read_report(folder.path)
    assert found.systems["pasta"].speed.all.wall_speedup is not None
    assert "cannot be reached" in found.judge_error
    assert "Judging ended early" in folder.markdown.read_text(encoding="utf-8")
    assert run("report", folder.path, "--no-judge") == 0
    assert read_report(folder.path).judge_error == ""


def test_two_reports_differ_in_figures_and_in_what_they_hold_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = evaluation(tmp_path / "a", answers(2.0)), evaluation(tmp_path / "b", answers(4.0))
    assert run("report", before.path, "--json") == run("report", after.path, "--json") == 0
    one, other = read_report(before.path), read_report(after.path)
    found = diff_reports(one, other)
    assert found.unlike == []
    changes = {(change.system, change.figure): change for change in found.changes}
    wall = changes["pasta", "wall_speedup, all"]
    assert (wall.before, wall.after, wall.apart) == (pytest.approx(2.0), pytest.approx(4.0), True)
    assert changes["sequential", "wall_speedup, all"].apart is False
    plan = other.told.plan.model_copy(update={"max_tokens": 9})
    changed = other.model_copy(update={"told": other.told.model_copy(update={"plan": plan, "prompts_sha256": "x"})})
    assert diff_reports(one, changed).unlike == ["max_tokens: 384 and 9", "prompts: prompts.jsonl and prompts.jsonl"]
    capsys.readouterr()
    assert run("diff", before.path, after.report) == 0
    assert "pasta: wall_speedup, all: 2 -> 4 *" in capsys.readouterr().out
    assert run("diff", before.path, after.path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["only_after"] == []
    assert run("diff", before.path, after.answers) == 2


def test_a_front_is_what_nobody_beats() -> None:
    points = {"base": (1.0, 0.0), "slow": (0.9, -1.0), "fast": (1.8, -3.0), "bad": (1.7, -4.0), "same": (1.8, -3.0)}
    assert pareto_front(points) == ["base", "fast", "same"]


def test_cells_of_tables_stay_in_their_columns() -> None:
    """Guards a table that a name with a bar in it breaks."""
    lines = table(["system", "x"], [["a|b", "1"]]).splitlines()
    assert {line.count("|") for line in lines} == {3}
