"""The model in training: a frozen base, LoRA on its linear layers, and the tag tokens' own rows."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.weights import ROWS_FILE, load_tags, resolve_model
from pasta_ray.errors import InputError
from pasta_ray.lang import TAG_NAMES, TagMap
from pasta_ray.train.config import RunConfig
from pasta_ray.train.data import Batch, ChatTokenizer, Encoder

# What each tag means, in words whose mean embedding is where its row starts. Untrained rows are all alike, and a model
# whose tags start alike learns to write *a* tag in the right place, but the wrong one (docs/log.md).
TAG_MEANINGS: Mapping[str, str] = {
    "<|promise|>": " topic of the next part begin section",
    "<|tokens|>": " length number of words count",
    "<|/promise|>": " later done skip continue outline",
    "<|async|>": " write details now start paragraph",
    "<|/async|>": " end finished stop close paragraph",
    "<|sync|>": " wait together all complete conclusion",
}
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Policy(nn.Module):
    """Logits for a packed batch. ``tag_rows`` [6, hidden] extend the tied embedding and head, which stay frozen."""

    def __init__(self, base: PreTrainedModel, *, rank: int, alpha: int, tags: TagMap | None, tokenizer: ChatTokenizer):
        super().__init__()
        lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
        self.peft_model: Any = get_peft_model(base, lora)
        self.tags = tags
        embedding = cast(Tensor, base.get_input_embeddings().weight)
        rows = torch.zeros(0, embedding.shape[1])
        if tags:
            starts = [embedding.data[tokenizer.encode(TAG_MEANINGS[name])].float().mean(0) for name in TAG_NAMES]
            rows = torch.stack(starts)
        self.tag_rows = nn.Parameter(rows.to(embedding.dtype), requires_grad=bool(tags))

    def forward(self, batch: Batch) -> Tensor:
        """Float32 logits [M, vocab + tags] at the batch's label sources."""
        base: Any = self.peft_model.get_base_model()
        table: Tensor = base.get_input_embeddings().weight
        head: Tensor = base.get_output_embeddings().weight
        is_tag = batch.ids >= table.shape[0]
        hidden = F.embedding(batch.ids.masked_fill(is_tag, 0), table)
        if self.tags:
            rows = F.embedding((batch.ids - table.shape[0]).clamp(min=0), self.tag_rows)
            hidden = torch.where(is_tag[..., None], rows, hidden)
        bias = torch.zeros(batch.mask.shape, dtype=hidden.dtype).masked_fill(~batch.mask, torch.finfo(hidden.dtype).min)
        hidden = base.model(
            inputs_embeds=hidden, attention_mask=bias.to(hidden.device), position_ids=batch.positions, use_cache=False
        ).last_hidden_state[0, batch.sources]
        return torch.cat([F.linear(hidden, head), F.linear(hidden, self.tag_rows)], dim=-1).float()

    @property
    def device(self) -> torch.device:
        return self.tag_rows.device

    def parameter_groups(self, learning_rate: float, tag_learning_rate: float) -> Iterator[dict[str, object]]:
        lora = [p for p in self.peft_model.parameters() if p.requires_grad]
        yield {"params": lora, "lr": learning_rate}
        if self.tags:
            yield {"params": [self.tag_rows], "lr": tag_learning_rate, "weight_decay": 0.0}


def load_policy(config: RunConfig, encoder: Encoder) -> Policy:
    """The run's base model with LoRA and tag rows, fresh or those of ``init_adapter``.

    Raises InputError where that adapter has another rank or alpha than the run, or other tags.
    """
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    folder = resolve_model(EngineConfig(model=config.model))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    base.requires_grad_(False)
    policy = Policy(
        base, rank=config.lora_rank, alpha=config.lora_alpha, tags=encoder.tags, tokenizer=encoder.tokenizer
    )
    if config.init_adapter:
        load_adapter(policy, config.init_adapter)
    return policy


def load_adapter(policy: Policy, folder: Path) -> None:
    """Take over an adapter that :func:`save_adapter` wrote. Raises InputError where it does not fit."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    lora = policy.peft_model.peft_config["default"]
    for name, own, theirs in (("rank", lora.r, settings["r"]), ("alpha", lora.lora_alpha, settings["lora_alpha"])):
        if own != theirs:
            raise InputError(f"lora_{name} is {own}, but the adapter {folder} has {theirs}")
    if load_tags(folder) != policy.tags:
        raise InputError(f"{folder}: its tags are {load_tags(folder)}, the run's are {policy.tags}")
    result: Any = set_peft_model_state_dict(policy.peft_model, load_file(folder / "adapter_model.safetensors"))
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise InputError(f"{folder}: does not fit the model; differs in {(missing + result.unexpected_keys)[0]}")
    if policy.tags:
        with torch.no_grad():
            policy.tag_rows.copy_(load_file(folder / ROWS_FILE)["tag_rows"])


def save_adapter(policy: Policy, folder: Path) -> None:
    """A PEFT adapter in bfloat16, with the tag rows and tag map beside it: what the engine loads."""
    folder.mkdir(parents=True, exist_ok=True)
    policy.peft_model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    weights = folder / "adapter_model.safetensors"
    save_file({k: v.bfloat16().contiguous() for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if policy.tags:
        save_file({"tag_rows": policy.tag_rows.detach().float().contiguous()}, folder / ROWS_FILE)
        policy.tags.save(folder)
