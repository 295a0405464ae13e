"""Imports point one way: cli -> serve -> actors -> engine -> lang, and eval -> train -> engine, lang."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pasta_ray"
MAY_IMPORT = {
    "errors": set[str](),
    "lang": {"errors"},
    "engine": {"errors", "extensions", "lang"},
    "actors": {"errors", "logs", "lang", "engine"},
    "batch": {"errors", "lang", "engine", "actors"},
    "serve": {"errors", "logs", "lang", "engine", "actors"},
    "train": {"errors", "lang", "engine"},
    "eval": {"errors", "lang", "engine", "train"},
}
FOREIGN = {"lang": {"torch", "ray", "numpy", "transformers"}, "engine": {"ray", "fastapi"}, "actors": {"fastapi"}}


def imports(folder: str) -> set[tuple[str, str]]:
    """(file, imported module) of every import in a folder, the lazy ones too."""
    found = set()
    for path in (PACKAGE / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path.name}: relative import"
                names = [node.module or ""]
            found |= {(path.name, name) for name in names}
    return found


@pytest.mark.parametrize("folder", sorted(set(MAY_IMPORT) - {"errors"}))
def test_imports_point_one_way(folder: str) -> None:
    """Guards against a room that reaches up: what runs in an actor must run without one."""
    for file, name in imports(folder):
        parts = name.split(".")
        if parts[0] == "pasta_ray" and len(parts) > 1:
            assert parts[1] in MAY_IMPORT[folder] | {folder}, f"{folder}/{file} imports {name}"
        assert parts[0] not in FOREIGN.get(folder, set()), f"{folder}/{file} imports {name}"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("pasta_ray.lang", ("torch", "ray", "transformers")),
        ("pasta_ray.cli", ("torch", "ray", "transformers")),
        ("pasta_ray.actors.cluster", ("torch", "transformers")),
    ],
)
def test_light_modules_load_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    """Guards `pasta-ray --help` and `parse`, and a coordinator that starts anew, which must not wait for torch."""
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.strip() == "[]"
