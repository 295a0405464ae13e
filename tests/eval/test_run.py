"""Running an evaluation: every answer once, in turn, whatever is interrupted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.engine.messages import Report, Sampling
from pasta_ray.engine.methods import METHODS
from pasta_ray.errors import InputError
from pasta_ray.eval.answers import read_answers
from pasta_ray.eval.bench.machine import Machine
from pasta_ray.eval.folder import EvalFolder
from pasta_ray.eval.local import LocalAnswerer
from pasta_ray.eval.plan import EvalPlan, System, standard_systems
from pasta_ray.eval.prompts import Prompt, PromptSet, load_prompts
from pasta_ray.eval.run import Task, read_done, run_tasks, schedule
from pasta_ray.lang import TagMap
from pasta_ray.train.config import load_config
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer
from tests.eval.reports import report

MACHINE = Machine("test", 1, 1, 1, 1.0, 1.0, 1, None, "3", {}, "today")
PROMPTS = tuple(Prompt(id=f"p{n}", instruction=f"hello {n}") for n in range(5))


def plan(**changes: Any) -> EvalPlan:
    systems = [System(name=name, method="sequential") for name in "ABC"]
    return EvalPlan(**({"prompts": "prompts.jsonl", "systems": systems} | changes))


class FakeAnswerer:
    """Notes who was asked what; refuses and fails on request."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.seeds: dict[str, int] = {}
        self.fail_at = fail_at

    def answer(self, task: Task, sampling: Sampling, max_tokens: int) -> Report:
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append((task.id, max_tokens))
        self.seeds[task.id] = sampling.seed
        if task.prompt.id == "p3":
            raise InputError("the prompt is too long")
        return report(text=f"{task.system.name} says é to {task.prompt.id}")


def go(plan: EvalPlan, path: Path, answerer: FakeAnswerer, prompts: tuple[Prompt, ...] = PROMPTS) -> None:
    done = read_done(path)
    tasks = [task for task in schedule(plan, prompts) if task.id not in done]
    if tasks:
        list(run_tasks(plan, tasks, answerer, path))


def test_systems_alternate_and_each_is_first_as_often() -> None:
    """Guards A A A B B B, and one system that always runs on what another has left in the caches."""
    order = [(task.prompt.id, task.system.name) for task in schedule(plan(repetitions=2), PROMPTS)]
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert ["".join(system for _, system in one) for one in rounds[:4]] == ["ABC", "BCA", "CAB", "ABC"]
    assert all(len({prompt for prompt, _ in one}) == 1 for one in rounds)
    assert rounds[5] == [("p0", "B"), ("p0", "C"), ("p0", "A")], "the next repetition starts with another system"
    assert set(Counter(order).values()) == {2}


def test_warm_ups_are_short_and_not_among_the_answers(tmp_path: Path) -> None:
    answerer = FakeAnswerer()
    go(plan(), tmp_path / "answers.jsonl", answerer)
    assert answerer.asked[:4] == [("p0#A#0", 16), ("p0#B#0", 16), ("p0#C#0", 16), ("p0#A#0", 384)]
    assert len(read_answers(tmp_path / "answers.jsonl")) == 15


@pytest.mark.parametrize("fail_at", [3, 4, 10])
def test_an_interrupted_run_goes_on_to_the_same_answers(tmp_path: Path, fail_at: int) -> None:
    """Guards prompts that are run twice or left out, and a last line that was half written."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    go(plan(), whole, FakeAnswerer())
    with pytest.raises(KeyboardInterrupt):
        go(plan(), cut, FakeAnswerer(fail_at))
    with cut.open("ab") as file:
        file.write('{"id": "p4#C#0", "text": "é'.encode()[:-1])
    assert len(read_answers(cut)) == fail_at - 3, "a line that is being written is none"
    go(plan(), cut, FakeAnswerer())
    assert cut.read_bytes() == whole.read_bytes()
    after = FakeAnswerer()
    go(plan(), cut, after)
    assert after.asked == []


def test_a_refused_prompt_is_an_answer_too(tmp_path: Path) -> None:
    """Guards against a run that stops at it, and one that asks again for ever."""
    go(plan(), tmp_path / "a.jsonl", FakeAnswerer())
    refused = [answer for answer in read_answers(tmp_path / "a.jsonl") if answer.report is None]
    assert {(answer.prompt_id, answer.refusal) for answer in refused} == {("p3", "the prompt is too long")}
    assert len(refused) == 3


def test_systems_draw_from_the_same_seed_and_repetitions_from_others(tmp_path: Path) -> None:
    """Guards sampled answers of speculative decoding that could not equal those of sequential decoding."""
    answerer = FakeAnswerer()
    go(plan(repetitions=2, temperature=0.7), tmp_path / "a.jsonl", answerer)
    assert answerer.seeds["p0#A#0"] == answerer.seeds["p0#B#0"] != answerer.seeds["p0#A#1"]
    assert answerer.seeds["p0#A#0"] != answerer.seeds["p1#A#0"]


def test_a_folder_keeps_to_what_it_was_told(tmp_path: Path) -> None:
    """Guards answers of two plans in one file; what is judged afterwards may change."""
    folder = EvalFolder(tmp_path / "out")
    prompts = PromptSet(PROMPTS, "digest")
    with folder.lock():
        folder.claim(plan(), prompts)
        folder.claim(plan(max_tokens=9), prompts)  # nothing is answered yet
        go(plan(), folder.answers, FakeAnswerer())
        folder.claim(plan(max_tokens=9, quality={"judge": "local"}, prompts="elsewhere.jsonl", limit=2), prompts)
        with pytest.raises(InputError, match="max_tokens 9, and now it is 8"):
            folder.claim(plan(max_tokens=8), prompts)
        with pytest.raises(InputError, match="prompts_sha256"):
            folder.claim(plan(max_tokens=9), PromptSet(PROMPTS, "other"))
        with pytest.raises(InputError, match="another evaluation is at work"), EvalFolder(tmp_path / "out").lock():
            pass
        folder.sit_down(MACHINE)
        folder.sit_down(MACHINE)
    assert [sitting.id for sitting in folder.read_sittings()] == [0, 1]
    assert folder.read_told().plan.max_tokens == 9
    with pytest.raises(InputError, match="not written by"):
        EvalFolder(tmp_path / "nowhere").read_told()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": []}, "at least 1"),
        ({"systems": [{"name": "a#b", "method": "pasta"}]}, "pattern"),
        ({"systems": [{"name": "a", "method": "magic"}]}, "'magic'; allowed: sequential, pasta"),
        ({"systems": [{"name": "a", "method": "pasta"}] * 2}, "used twice"),
        ({"baseline": "D"}, "'D'; allowed: A, B, C"),
        ({"quality": {"judge": "llm"}}, "needs base_url"),
        ({"quality": {"judge": "local", "judge_model": "m"}}, "go with judge llm"),
        ({"repetitions": 0}, "repetitions is 0: with load alone"),
        ({"repetitions": 0, "load": {}, "quality": {}}, "and without quality"),
    ],
)
def test_mistakes_in_a_plan_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_the_example_plan_is_one() -> None:
    """Guards the documented file against a field that is renamed."""
    example = load_config(EvalPlan, Path(__file__).parents[2] / "jobs/configs/eval.yaml", [])
    assert example.baseline_name == "sequential"
    assert {system.method for system in example.systems} == set(METHODS)


def test_usual_systems_by_name() -> None:
    assert [system.adapter for system in standard_systems(["sequential", "pasta", "pasta"])] == [
        "baseline-sft",
        "pasta",
    ]
    with pytest.raises(InputError, match="'medusa' is unknown; allowed: sequential"):
        standard_systems(["medusa"])


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_prompts_are_read_with_what_figures_need(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        *(
            {"id": f"p{n}", "instruction": "i", "source": "s", "instruction_difficulty": n, "extra": 1}
            for n in range(9)
        ),
    )
    found = load_prompts(str(path), limit=3).prompts
    assert [(prompt.id, prompt.group, prompt.instruction_difficulty) for prompt in found] == [
        ("p0", "s", 0.0),
        ("p3", "s", 3.0),
        ("p6", "s", 6.0),
    ]
    alpaca = tmp_path / "alpaca_eval.json"
    alpaca.write_text(json.dumps([{"instruction": "i", "output": "o", "dataset": "koala", "generator": "g"}]))
    (prompt,) = load_prompts(str(alpaca)).prompts
    assert (prompt.id, prompt.group, prompt.reference_output) == ("alpacaeval-0", "koala", "o")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a"}\n', "line 1: instruction: Field required"),
        ('{"id": "a", "instruction": "i"}\n' * 2, "line 2: id 'a' was used before"),
        ('{"id": "a", "instruction": ""}\n', "line 1: id and instruction must not be empty"),
        ("nonsense\n", "line 1: not JSON"),
        ("", "no prompts"),
    ],
)
def test_a_wrong_prompts_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_prompts(str(tmp_path / "p.jsonl"))
    with pytest.raises(InputError, match="No such file"):
        load_prompts(str(tmp_path / "none.jsonl"))


def test_the_hubs_alpacaeval_has_its_difficulties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards length control that goes without them because prompts came from the hub."""
    records = [{"instruction": f"i{n}", "output": "o", "dataset": "d"} for n in range(2)]
    (tmp_path / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(records))
    (tmp_path / "instruction_difficulty.csv").write_text(",instruction_difficulty\n0,-1.5\n1,2.5\n")
    monkeypatch.setattr("pasta_ray.eval.prompts.hf_hub_download", lambda _, name, **__: str(tmp_path / name))
    assert [prompt.instruction_difficulty for prompt in load_prompts("alpacaeval").prompts] == [-1.5, 2.5]

    def fail(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("pasta_ray.eval.prompts.hf_hub_download", fail)
    with pytest.raises(InputError, match="name a file instead: no network"):
        load_prompts("alpacaeval")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that writes tags."""
    folder = save_tokenizer(save_model(tmp_path_factory.mktemp("model"), vocab_size=306))
    TagMap.after(300).save(folder)
    return folder


def test_engines_answer_and_speculative_equals_sequential(model: Path, tmp_path: Path) -> None:
    """Guards the run on real engines: methods that share an engine, drafts that change an answer, slots that stay."""
    settings = {"model": str(model)}
    ours = plan(
        systems=[
            System(name="sequential", method="sequential", **settings),
            System(name="speculative", method="speculative", **settings),
            System(name="pasta", method="pasta", **settings),
            System(name="free", method="pasta", constrained=False, **settings),
            System(name="sot", method="sot", **settings),
        ],
        max_tokens=12,
        temperature=0.5,
    )
    answerer = LocalAnswerer(ours)
    path = tmp_path / "answers.jsonl"
    list(run_tasks(ours, list(schedule(ours, PROMPTS[:1])), answerer, path))
    texts = {answer.id: answer.report.text for answer in read_answers(path) if answer.report}
    assert len(texts) == 5
    assert texts["p0#sequential#0"] == texts["p0#speculative#0"]
    assert answerer.num_slots == 0
    assert ours.engine(ours.systems[0]).prefix_cache_bytes == 0, "later systems of a round would find the prompt"
    with pytest.raises(InputError, match="system 'x': method is 'apar'; allowed with this model"):
        LocalAnswerer(plan(systems=[System(name="x", method="apar", **settings)]))
