"""From a model's name to its tensors: a folder of safetensors, an adapter merged into it, and the tags' rows."""

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging

from pasta_ray.engine.architecture import check_supported
from pasta_ray.engine.config import DEFAULT_MODEL, EngineConfig
from pasta_ray.engine.gguf import convert_gguf, fetch_default_model
from pasta_ray.errors import ModelError
from pasta_ray.lang.apar import ControlMap
from pasta_ray.lang.tags import TagMap, TokenMap

ADAPTERS = Path(__file__).parent.parent / "adapters"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja"]
ROWS_FILE = "tag_rows.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


@dataclass
class Checkpoint:
    """A model ready for the engine. ``folder`` holds its config and tokenizer, ``files`` are what its tensors were
    read from, ``tags`` are None for a model that writes no tags."""

    folder: Path
    config: PretrainedConfig
    tags: TokenMap | None
    files: tuple[Path, ...]
    tensors: dict[str, torch.Tensor]

    def take_tensors(self) -> dict[str, torch.Tensor]:
        """Hand the tensors over, so that they live no longer than their new owner needs."""
        tensors, self.tensors = self.tensors, {}
        return tensors

    def fingerprint(self, numerics: str) -> str:
        """Hex sha256 of config, numerics and every weight file's bytes."""
        digest = hashlib.sha256(f"{numerics}\n{self.config.to_json_string()}\n{self.tags}".encode())
        for path in self.files:
            digest.update(_file_digest(path, path.stat().st_mtime_ns))
        return digest.hexdigest()


@cache
def _file_digest(path: Path, modified_ns: int) -> bytes:
    """Of a file's bytes; several adapters of one model read its weights once."""
    del modified_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load_checkpoint(config: EngineConfig) -> Checkpoint:
    """Model and adapter of ``config``, merged. Raises ModelError, naming the file, for what is missing or misfit."""
    folder = resolve_model(config)
    adapter = resolve_adapter(config.adapter) if config.adapter else None
    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error
    check_supported(model_config)
    files = tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        raise ModelError(f"{folder}: no *.safetensors file; a model's weights are expected there")
    tensors = merge_adapter(folder, adapter) if adapter else read_tensors(files)
    checkpoint = Checkpoint(folder, model_config, None, files, tensors)
    for place in filter(None, (adapter, folder)):
        if tags := load_tags(place):
            checkpoint.tags = tags
            place_tag_rows(checkpoint, place / ROWS_FILE)
            break
    if adapter:
        checkpoint.files += tuple(sorted(adapter.glob("*.safetensors")))
    return checkpoint


def resolve_model(config: EngineConfig) -> Path:
    """The folder that holds the model: given, converted from GGUF, or fetched from the hub."""
    if config.model == DEFAULT_MODEL:
        return fetch_default_model(config.cache_dir)
    path = Path(config.model).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        return convert_gguf(path, config.cache_dir)
    try:
        return Path(snapshot_download(config.model, allow_patterns=HUB_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model {config.model!r} is neither {DEFAULT_MODEL!r}, nor a folder, nor a .gguf file, and the hub"
            f" does not give it: {error}"
        ) from error


def resolve_adapter(name: str) -> Path:
    """An adapter's folder: given, or shipped in the package under its name."""
    path = Path(name).expanduser()
    for folder in (ADAPTERS / name, path) if path.name == name else (path,):
        if (folder / "adapter_config.json").is_file():
            return folder
    shipped = ", ".join(shipped_adapters()) or "none"
    raise ModelError(f"{path / 'adapter_config.json'}: no such file; adapters shipped: {shipped}")


def shipped_adapters() -> tuple[str, ...]:
    """The names of the adapters that the package ships."""
    return tuple(sorted(file.parent.name for file in ADAPTERS.glob("*/adapter_config.json")))


def load_tags(folder: Path) -> TokenMap | None:
    """The map of the tokens that act, of a checkpoint or adapter; None where it carries none.

    Raises ModelError for a malformed map, and for two of them: weights write one language or the other.
    """
    kinds: list[type[TokenMap]] = [kind for kind in (TagMap, ControlMap) if (folder / kind.file).is_file()]
    if len(kinds) > 1:
        raise ModelError(f"{folder}: holds {' and '.join(kind.file for kind in kinds)}; allowed: one of them")
    return kinds[0].load(folder) if kinds else None


def find_tags(config: EngineConfig) -> TokenMap | None:
    """The tags that the adapter writes, else those of the model itself. No weights are read."""
    if config.adapter and (tags := load_tags(resolve_adapter(config.adapter))):
        return tags
    return load_tags(resolve_model(config))


def check_adapter(config: EngineConfig) -> None:
    """Raise the ModelError of an adapter that is made for another model, without reading any weights: by the names and
    shapes in the files' heads. What only their content can tell, loading tells."""
    if config.adapter is None:
        return
    adapter = resolve_adapter(config.adapter)
    path = adapter / ADAPTER_FILE
    _check_adapter(adapter / "adapter_config.json", path)
    adapted = _read_shapes([path])
    weights = _read_shapes(resolve_model(config).glob("*.safetensors"))
    for name, shape in adapted.items():
        target = re.sub(r"\.lora_[AB]\.", ".", name).removeprefix(PEFT_PREFIX)
        side = 1 if ".lora_A." in name else 0  # A is [rank, inputs], B is [outputs, rank]
        if target == name or target not in weights or shape[side] != weights[target][side]:
            raise ModelError(
                f"{path}: does not fit model {config.model!r}: {name} is {list(shape)},"
                f" {target} is {list(weights[target]) if target in weights else 'not there'}"
            )


def _read_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a dict
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a readable safetensors file: {error}") from error
    return shapes


def read_tensors(files: tuple[Path, ...]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a readable safetensors file: {error}") from error
    return tensors


def merge_adapter(folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The model's tensors, float32, with a PEFT LoRA adapter merged into them."""
    from peft import PeftModel  # takes seconds to import, and only adapters need it

    path = adapter / ADAPTER_FILE
    _check_adapter(adapter / "adapter_config.json", path)
    with no_progress_bar(), _as_model_error(folder):
        base = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    with _as_model_error(path), warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5.23 deprecates; and it only warns of keys that it misses,
        # which is an error below.
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base, str(adapter))
    wanted = {name.replace(".default.", ".") for name in model.state_dict() if ".lora_" in name}
    found = set(read_tensors((path,)))
    if wanted != found:
        raise ModelError(f"{path}: does not fit the model; differs in {', '.join(sorted(wanted ^ found)[:3])} …")
    merged: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return merged


def _check_adapter(config_path: Path, weights_path: Path) -> None:
    if not weights_path.is_file():
        raise ModelError(f"{weights_path}: no such file")
    try:
        settings = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{config_path}: {error}") from error
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{config_path}: peft_type is {settings.get('peft_type')!r}; supported: 'LORA'")
    targets = settings.get("target_modules") or []
    embeddings = {"embed_tokens", "lm_head"} & set([targets] if isinstance(targets, str) else targets)
    if embeddings or settings.get("modules_to_save"):
        what = ", ".join(sorted(embeddings)) or "modules_to_save"
        raise ModelError(f"{config_path}: trains {what}; supported: LoRA on a block's linears, and {ROWS_FILE}")


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """A bar for what takes a second would stand in the middle of an answer's output."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types for these two
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _as_model_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ModelError(f"{path}: does not fit the model: {error}") from error


def place_tag_rows(checkpoint: Checkpoint, path: Path) -> None:
    """Write the tags' rows into the embedding, and into the head where it is not tied, behind their ends if need be.

    ``path`` holds ``tag_rows`` [num_tags, hidden], and ``tag_head_rows`` for an untied head, in the order
    of the tags' names. A checkpoint whose embedding covers its tags needs no such file.
    """
    tags, tensors = checkpoint.tags, checkpoint.tensors
    assert tags is not None, "tag rows are placed where tags are known"
    vocab_size = len(tensors[EMBEDDING])
    if not path.is_file():
        if max(tags.ids) >= vocab_size:
            raise ModelError(f"{path}: no such file, and tag id {max(tags.ids)} is beyond the vocabulary {vocab_size}")
        return
    rows = read_tensors((path,))
    names = {EMBEDDING: "tag_rows"}
    if not checkpoint.config.tie_word_embeddings:
        names[HEAD] = "tag_head_rows"
    for weight, name in names.items():
        if name not in rows:
            raise ModelError(f"{path}: no tensor {name}")
        tensors[weight] = _with_rows(tensors[weight], tags.ids, rows[name], path)


def _with_rows(weight_VE: torch.Tensor, ids: tuple[int, ...], rows_NE: torch.Tensor, path: Path) -> torch.Tensor:
    vocab_size, hidden_size = weight_VE.shape
    if rows_NE.shape != (len(ids), hidden_size):
        raise ModelError(f"{path}: shape is {list(rows_NE.shape)}; expected {[len(ids), hidden_size]}")
    new_ids = set(range(vocab_size, max(ids) + 1))
    if not new_ids <= set(ids):
        raise ModelError(f"{path}: tag ids {list(ids)} leave a gap behind the vocabulary of {vocab_size}")
    extended_VE = torch.cat((weight_VE, weight_VE.new_zeros((len(new_ids), hidden_size))))
    extended_VE[list(ids)] = rows_NE.to(weight_VE.dtype)
    return extended_VE
