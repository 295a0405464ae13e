"""What installed packages add: found by their metadata, imported when asked for, refused with their name."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.own_method import BothSides
from pasta_ray import cli
from pasta_ray.engine import methods
from pasta_ray.engine.methods import check_method, fitting_methods
from pasta_ray.errors import InputError
from pasta_ray.extensions import ExtensionError, extension_names, load_extension
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer


def install(folder: Path, package: str, entries: str) -> None:
    """A package's metadata, as pip leaves it beside the package."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entries, encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages; what is found there is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    methods._installed.cache_clear()
    yield tmp_path
    methods._installed.cache_clear()


def test_a_method_of_an_installed_package_is_one_like_any_other(site: Path) -> None:
    install(site, "sides", "[pasta_ray.methods]\nboth-sides = examples.own_method:BothSides\n")
    assert methods.find_methods()["both-sides"] is BothSides
    assert "both-sides" in fitting_methods(None)
    check_method("both-sides", None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("both-sides = examples.nothing:Run", "'both-sides' of sides .examples.nothing:Run. cannot be imported"),
        ("both-sides = json:dumps", "expected a subclass of Run"),
        ("pasta = examples.own_method:BothSides", "'pasta' is there already"),
    ],
)
def test_a_method_that_is_none_is_refused_with_its_name(site: Path, entry: str, message: str) -> None:
    install(site, "sides", f"[pasta_ray.methods]\n{entry}\n")
    with pytest.raises(ExtensionError, match=message):
        check_method("sequential", None)


def test_two_packages_cannot_share_a_name(site: Path) -> None:
    for package in ("one", "two"):
        install(site, package, "[pasta_ray.annotators]\nfaq = examples.own_annotator:Faq\n")
    assert extension_names("pasta_ray.annotators") == ("faq",)
    with pytest.raises(ExtensionError, match=r"'faq' is added by .*one.* and by .*two"):
        load_extension("pasta_ray.annotators", "faq")


def test_unknown_methods_are_refused_with_all_that_there_are(site: Path) -> None:
    install(site, "sides", "[pasta_ray.methods]\nboth-sides = examples.own_method:BothSides\n")
    with pytest.raises(InputError, match=r"'magic'; allowed with this model: sequential, .*both-sides"):
        check_method("magic", None)


def test_the_command_line_annotates_with_an_installed_annotator(site: Path) -> None:
    install(site, "faq", "[pasta_ray.annotators]\nfaq = examples.own_annotator:Faq\n")
    model = save_tokenizer(save_model(site / "model", vocab_size=300))
    answers, out = site / "answers.jsonl", site / "documents.jsonl"
    output = "Q: Why?\nA: Because it is so.\n\nQ: How?\nA: With great care."
    answers.write_text(json.dumps({"id": "a", "instruction": "Ask", "output": output}) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main(["annotate", str(answers), "--out", str(out), "--annotator", "faq", "--model", str(model)])
    assert ended.value.code == 0
    assert json.loads(out.read_text(encoding="utf-8"))["annotator"] == "faq"
