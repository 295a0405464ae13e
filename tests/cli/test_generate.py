import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pasta_ray.cli import answering, main
from pasta_ray.cli.prompts import Prompt, read_done
from pasta_ray.engine.config import DraftConfig
from pasta_ray.engine.messages import Request, Sampling
from pasta_ray.errors import InputError
from pasta_ray.lang import ControlMap, TagMap, TokenMap
from tests.fakes import FakeDecoder, FakeTokenizer

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `generate` over the fake decoder; gives the exit status."""
    monkeypatch.setattr(answering, "LoadDecoder", lambda *_: FakeDecoder)
    monkeypatch.setattr(answering, "LoadTokenizer", lambda _: FakeTokenizer)

    def run(*args: str) -> int:
        try:
            main(["generate", *args])
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    return run


def prompts(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_one_prompt_prints_its_text_in_document_order(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello fork a b c d") == 0
    assert capsys.readouterr().out == "hello one two three a b c d \n"


def test_json_prints_the_report(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello fork world", "--json", "--seed", "3") == 0
    report = json.loads(capsys.readouterr().out)
    expected = "id method text document finish_reason usage timing parallel branches"
    assert " ".join(report) == expected
    assert report["text"] == "hello one two three world "
    branch = "id parent topic tokens_predicted tokens first_step last_step start_s end_s replica finish_reason"
    assert " ".join(report["branches"][0]) == branch


@pytest.mark.parametrize("batch", ["1", "3"])
def test_a_file_of_prompts_gives_a_file_of_reports(run: Run, tmp_path: Path, batch: str) -> None:
    lines = [{"id": f"p{i}", "instruction": f"fork number {i}", "source": "test"} for i in range(7)]
    out = tmp_path / "out.jsonl"
    assert run("--prompts", prompts(tmp_path / "in.jsonl", *lines), "--out", str(out), "--batch", batch) == 0
    answers = {json.loads(line)["id"]: json.loads(line)["text"] for line in out.read_text().splitlines()}
    assert answers == {f"p{i}": f"one two three number {i} " for i in range(7)}


def test_a_run_goes_on_where_it_stopped_even_in_the_middle_of_a_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against answers twice, and against a torn line that no reader of the file can parse."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    first, second, third = ({"id": name, "instruction": f"answer {name}"} for name in "abc")
    assert run("--prompts", prompts(source, first), "--out", str(out)) == 0
    with out.open("a") as file:
        file.write('{"id": "b", "tex')
    prompts(source, first, "", second, third)
    assert run("--prompts", str(source), "--out", str(out)) == 0
    assert ids(out) == ["a", "b", "c"]
    assert run("--prompts", str(source), "--out", str(out)) == 0
    assert ids(out) == ["a", "b", "c"]
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "not JSON"),
        ("[1]", "an object is expected"),
        ({"id": "x"}, "'instruction' must be"),
        ({"id": 3, "instruction": "x"}, "'id' must be"),
        ({"id": "a", "instruction": "again"}, "used before"),
    ],
)
def test_a_bad_line_is_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: object, message: str
) -> None:
    source = prompts(tmp_path / "in.jsonl", {"id": "a", "instruction": "x"}, line)
    assert run("--prompts", source) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source}, line 2: ")
    assert message in error


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ((), 2, "give a prompt, or --prompts"),
        (("x", "--out", "y"), 2, "--out goes with --prompts"),
        (("refuse",), 2, "the prompt is refused"),
        (("x", "--method", "magic"), 2, "method is 'magic'; allowed with this model: sequential, pasta, speculative, "),
        (("x", "--method", "apar"), 2, "method is 'apar'; allowed with this model: sequential, pasta, speculative, "),
        (("x", "--adapter", "nope"), 2, "nope/adapter_config.json: no such file; adapters shipped: "),
        (("x", "--router"), 2, "router goes with method 'sot', not with 'pasta'"),
        (("x", "--method", "pasta+speculative", "--unconstrained"), 2, "goes with method 'pasta', not with"),
        (("x", "--temperature", "9"), 2, "temperature is 9.0; allowed: 0 to 2"),
        (("x", "--device", "toaster"), 2, "device is 'toaster'"),
        (("x", "--max-draft", "0"), 2, "max_draft is 0; allowed: 1 to 32"),
        (("x", "--draft-model", "small"), 2, "--draft-model goes with a speculative method, not with 'pasta'"),
        (("crash",), 1, "the kernel is out of luck"),
        (("--prompts", "no-such-file"), 2, "no-such-file: No such file"),
    ],
    ids=str,
)
def test_errors_are_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], status: int, message: str
) -> None:
    assert run(*args) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("files", "method"), [({}, "sequential"), ({"pasta": TagMap}, "pasta"), ({"apar": ControlMap}, "apar")]
)
def test_the_default_method_is_what_the_models_tags_are_for(
    run: Run, files: dict[str, type[TokenMap]], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards adapters without tags, such as baseline-sft: what they have learnt is to be decoded sequentially."""
    (tmp_path / "adapter_config.json").write_text("{}")
    for kind in files.values():
        kind.after(90).save(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(answering, "answer_one", lambda _, options, *__: asked.append(options.method))
    assert run("x", "--adapter", str(tmp_path), "--model", str(tmp_path)) == 0
    assert asked == [method]


def test_the_prompt_reaches_the_engine_as_a_message_too() -> None:
    """Guards methods that ask the model questions of their own about the prompt."""
    options = answering.Options("sot", 9, 2, Sampling(), DraftConfig(), router=True)
    request = options.request(Prompt("p", "hello"), FakeTokenizer())
    assert (request.messages, request.router, request.method) == ((("user", "hello"),), True, "sot")


def test_the_constraint_is_off_only_where_it_is_asked_for() -> None:
    """Guards a measurement that would measure the constraint, and answers that would not have it."""
    for constrained in (True, False):
        options = answering.Options("pasta", 9, 2, Sampling(), DraftConfig(), constrained=constrained)
        assert options.request(Prompt("p", "hello"), FakeTokenizer()).constrained == constrained
    assert Request("r", (1,)).constrained


def test_an_error_in_a_file_of_prompts_names_the_prompt_and_keeps_the_answers(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"id": "good", "instruction": "x"}, {"id": "bad", "instruction": "refuse"}]
    out = tmp_path / "out.jsonl"
    assert run("--prompts", prompts(tmp_path / "in.jsonl", *lines), "--out", str(out)) == 2
    assert "error: prompt 'bad': the prompt is refused" in capsys.readouterr().err
    assert ids(out) == ["good"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_replica_answers_as_this_process_does(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello fork world", "--no-in-process") == 0
    assert capsys.readouterr().out == "hello one two three world \n"


def test_a_file_that_is_no_answers_file_stays_as_it_is(tmp_path: Path) -> None:
    """Guards somebody's notes, named by mistake as --out, and the whole lines of a run that a crash has cut off."""
    notes = tmp_path / "notes.txt"
    notes.write_text("my precious notes without newline", encoding="utf-8")
    with pytest.raises(InputError, match="not written by an earlier run"):
        read_done(notes)
    assert notes.read_text(encoding="utf-8") == "my precious notes without newline"
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": "a"}\n{"id": "b", "te', encoding="utf-8")
    assert read_done(answers) == {"a"}
    assert answers.read_text(encoding="utf-8") == '{"id": "a"}\n'
    answers.write_bytes(b'{"id": "a"}\n{"id": "b", "text": "caf\xc3')
    assert read_done(answers) == {"a"}, "the crash may come in the middle of a character"
    answers.write_bytes(b'{"id": "a"}\n{"i')
    assert read_done(answers) == {"a"}, "or of the first field's name"
    with pytest.raises(InputError, match="directory"):
        read_done(tmp_path)
