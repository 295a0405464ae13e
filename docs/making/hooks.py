"""mkdocs hooks: reference pages made of the code, and pages and files of the repository that stand outside docs/.

Links are written as the repository has them (``../pasta_ray/lang/GRAMMAR.md``), so that they work there too. Here they
are turned to where the site has the same file; mkdocs then checks that it is there, anchors as well.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import reference  # noqa: E402  it stands beside this file, and imports the package

PAGES = {
    "pasta_ray/lang/GRAMMAR.md": "language.md",
    "examples/README.md": "examples.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "README.md": "readme.md",
    "cluster/README.md": "cluster-commands.md",
} | {
    str(card.relative_to(ROOT)): f"adapters/{card.parent.name}.md"
    for card in sorted((ROOT / "pasta_ray/adapters").glob("*/README.md"))
}
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]+)")


def place(path: Path) -> str:
    """Where the site has a file of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return PAGES.get(path.relative_to(ROOT).as_posix(), f"files/{path.relative_to(ROOT).as_posix()}")


def linked(source: Path) -> Iterator[Path]:
    """The files that a page links to."""
    for target in LINK.findall(source.read_text(encoding="utf-8")):
        yield Path(os.path.normpath(source.parent / target))


def on_config(config: MkDocsConfig) -> None:
    """A page of the navigation that does not exist is left out; one that exists and is in no navigation is an error."""
    made = {*reference.pages(), *(site for page, site in PAGES.items() if (ROOT / page).is_file())}
    config.nav = _existing(config.nav, made)


def _existing(items: Any, made: set[str]) -> Any:
    if isinstance(items, str):
        return items if items in made or (DOCS / items).is_file() else None
    if isinstance(items, dict):
        kept = {title: _existing(item, made) for title, item in items.items()}
        return {title: item for title, item in kept.items() if item} or None
    return [item for item in (_existing(item, made) for item in items) if item]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, text in reference.pages().items():
        files.append(File.generated(config, uri, content=text))
    sources = [ROOT / page for page in PAGES if (ROOT / page).is_file()]
    for source in sources:
        files.append(File.generated(config, place(source), abs_src_path=str(source)))
    sources += [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    for path in sorted({path for source in sources for path in linked(source)}):
        if path.is_file() and files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    if page.file.abs_src_path is None:
        return markdown
    source, here = Path(page.file.abs_src_path), Path(page.file.src_uri).parent

    def turned(match: re.Match[str]) -> str:
        target = place(Path(os.path.normpath(source.parent / match[1])))
        return f"]({os.path.relpath(target, here)}"

    return LINK.sub(turned, markdown)
