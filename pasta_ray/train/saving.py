"""A trained policy as files: an adapter beside its base model, or a whole checkpoint. The engine loads either."""

import json
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from pasta_ray.engine.weights import EMBEDDING, HEAD, ROWS_FILE
from pasta_ray.train.policy import HEAD_ROWS, ROWS, Policy


def save_adapter(policy: Policy, folder: Path) -> None:
    """A PEFT adapter in bfloat16, with the tag rows in float32 and the tag map beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    policy.model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    weights = folder / "adapter_model.safetensors"
    save_file({k: v.bfloat16().contiguous() for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if policy.tags:
        rows = {name: row.detach().float().contiguous() for name, row in policy.rows.items()}
        save_file(rows, folder / ROWS_FILE)
        policy.tags.save(folder)


def save_model(policy: Policy, base_folder: Path, folder: Path) -> None:
    """A checkpoint in the precision of training, its vocabulary extended by the tags; ``base_folder``'s tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name.replace(".original.", "."): tensor
        for name, tensor in policy.base.state_dict().items()
        if not name.endswith(".rows")
    }
    config = policy.base.config
    if config.tie_word_embeddings:
        tensors.pop(HEAD)
    if policy.tags:
        rows = {EMBEDDING: policy.rows[ROWS]} | ({HEAD: policy.rows[HEAD_ROWS]} if HEAD in tensors else {})
        for name, row in rows.items():
            tensors[name] = _with_rows(tensors[name], policy.tags.ids, row.detach())
        config = type(config).from_dict(config.to_dict() | {"vocab_size": len(tensors[EMBEDDING])})
        policy.tags.save(folder)
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()}, folder)
    config.save_pretrained(folder)
    if policy.base.generation_config:
        policy.base.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(folder)


def _with_rows(weight: Tensor, ids: tuple[int, ...], rows: Tensor) -> Tensor:
    """``weight`` [vocab, hidden] with ``rows`` at ``ids``, in it or right behind it."""
    missing = max(0, max(ids) + 1 - len(weight))
    extended = torch.cat([weight, weight.new_zeros(missing, weight.shape[1])])
    extended[list(ids)] = rows.to(weight.dtype)
    return extended
