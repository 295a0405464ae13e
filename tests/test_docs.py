"""The documentation against the project: links lead somewhere, commands exist, the site builds."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from mkdocs.commands.build import build
from mkdocs.config import load_config

from docs.making import pictures
from pasta_ray.cli import app
from pasta_ray.lang import TagMap
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer
from tests.test_structure import PACKAGE

ROOT = PACKAGE.parent
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "examples", PACKAGE)
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """A page's headings as links name them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Guards links that are followed in the repository: files and headings, not the site's."""
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(path), f"{target or page.name} has no heading #{anchor}"


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `pasta-ray` in a page's blocks and in its code between backticks."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for _, kind, block in FENCE.findall(text) if kind in ("", "bash", "sh", "console")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(pasta-ray [a-z][^`]+)`", FENCE.sub("", text).replace("\n", " "))
    for line in lines:
        if match := re.match(r"\s*(?:\$ )?(?:\w+=\S+ )*(?:.*\| *)?pasta-ray +(.+)", line):
            words = shlex.split(re.split(r"\s[|>&]+\s|;", match[1])[0], comments=True)
            yield words


def refuse(words: list[str]) -> None:
    """Raise what the command line says of these arguments; nothing is run."""
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="pasta-ray")
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]
        context = typer.Context(command, parent=context, info_name=words[0])
        words = words[1:]
    if hasattr(command, "commands"):
        assert not words, f"there is no command {words[0]!r}"
        return
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        option = word.partition("=")[0]
        assert not re.match(r"--?[a-z]", word) or option in known, f"{context.command_path} has no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    """Guards commands and options that were renamed since."""
    for words in commands(page):
        refuse(words)


def test_a_wrong_command_is_found() -> None:
    """Guards the check itself."""
    with pytest.raises(AssertionError, match="has no option --methods"):
        refuse(["generate", "hello", "--methods", "pasta"])
    with pytest.raises(AssertionError, match="no command 'samples'"):
        refuse(["train", "samples"])


def test_the_site_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards pages that are missing in the navigation, and links, anchors and references that the site has not."""
    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    assert (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8").count("--max-branches")


def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    """Guards the script that made docs/pictures, on the report that it made them of; another tokenizer counts here."""
    model = save_tokenizer(save_model(tmp_path / "model", vocab_size=320))
    TagMap.after(314).save(model)
    pictures.main([str(ROOT / "docs/pictures/report.json"), str(tmp_path), "--model", str(model), "--adapter", "none"])
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in (ROOT / "docs/pictures").glob("*.svg")}
    assert "Improves Sleep" in (tmp_path / "timeline.svg").read_text(encoding="utf-8")
