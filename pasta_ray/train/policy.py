"""The model in training: a base with LoRA on its linear layers, or all of it, and the tag tokens' own rows."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from pasta_ray.engine.architecture import FULL, SLIDING, Architecture
from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.weights import ROWS_FILE, load_tags, resolve_model
from pasta_ray.errors import InputError
from pasta_ray.train.config import RunConfig
from pasta_ray.train.data import Batch, Encoder

# What each tag means, in words whose mean embedding is where its row starts. Untrained rows are all alike, and a model
# whose tags start alike learns to write *a* tag in the right place, but the wrong one (docs/log.md).
TAG_MEANINGS: Mapping[str, str] = {
    "<|promise|>": " topic of the next part begin section",
    "<|tokens|>": " length number of words count",
    "<|/promise|>": " later done skip continue outline",
    "<|async|>": " write details now start paragraph",
    "<|/async|>": " end finished stop close paragraph",
    "<|sync|>": " wait together all complete conclusion",
    "<|fork|>": " details follow separately explain more",
    "<|child|>": " begin details now explain this",
}
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS, HEAD_ROWS = "tag_rows", "tag_head_rows"  # as the engine names them (``engine.weights.place_tag_rows``)


class TagEmbedding(nn.Module):
    """A model's embedding in which the tags, at ``tag_ids``, have rows [6, hidden] of their own."""

    def __init__(self, original: nn.Embedding, rows: nn.Parameter, tag_ids: Tensor) -> None:
        super().__init__()
        self.original, self.rows = original, rows
        self.register_buffer("tag_ids", tag_ids, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        is_which = ids[..., None] == cast(Tensor, self.tag_ids)
        is_tag = is_which.any(-1)
        rows = F.embedding(is_which.int().argmax(-1), self.rows)
        scale = getattr(self.original, "embed_scale", None)  # Gemma's, which scales whatever it looks up
        if scale is not None:
            rows = rows * scale.to(rows.dtype)
        return torch.where(is_tag[..., None], rows, self.original(ids.masked_fill(is_tag, 0)))


class TagHead(nn.Module):
    """A model's head whose logits at ``tag_ids``, in the vocabulary or right behind it, come from rows of their own."""

    def __init__(self, original: nn.Linear, rows: nn.Parameter, tag_ids: Tensor) -> None:
        super().__init__()
        self.original, self.rows = original, rows
        self.register_buffer("tag_ids", tag_ids, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        tag_ids, logits, tag_logits = cast(Tensor, self.tag_ids), self.original(hidden), F.linear(hidden, self.rows)
        if tag_ids.max() >= logits.shape[-1]:
            return torch.cat([logits, tag_logits], dim=-1)
        return cast(Tensor, logits.index_copy(-1, tag_ids, tag_logits))


class Policy(nn.Module):
    """Logits for a packed batch. ``model`` is the base, or PEFT's wrapper around it; ``rows`` are the tags', by the
    names that they are saved under: none for a model without tags, one for a tied embedding and head, two else.
    """

    def __init__(self, base: Any, encoder: Encoder, rows: Mapping[str, Tensor], lora: LoraConfig | None):
        super().__init__()
        self.tags = encoder.tags
        self.rows = nn.ParameterDict({name: nn.Parameter(values) for name, values in rows.items()})
        self.windows = Architecture.read(base.config).windows
        base.requires_grad_(lora is None)
        if self.tags:
            tag_ids = torch.tensor(self.tags.ids)
            embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
            base.set_input_embeddings(TagEmbedding(embedding, self.rows[ROWS], tag_ids))
            head_rows = self.rows[HEAD_ROWS if HEAD_ROWS in self.rows else ROWS]
            base.set_output_embeddings(TagHead(head, head_rows, tag_ids))
        self.model: Any = base if lora is None else get_peft_model(base, lora)
        self.rows.requires_grad_(True)  # which PEFT has frozen with the base

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def base(self) -> Any:
        """The model as transformers knows it."""
        return self.model.get_base_model() if self.is_lora else self.model

    @property
    def is_lora(self) -> bool:
        return hasattr(self.model, "peft_config")

    def forward(self, batch: Batch) -> Tensor:
        """Float32 logits [M, vocab + tags] at the batch's label sources."""
        logits: Tensor = self.base(
            input_ids=batch.ids,
            attention_mask=self._mask(batch),
            position_ids=batch.positions,
            logits_to_keep=batch.sources,
            use_cache=False,
        ).logits[0]
        return logits.float()

    def _mask(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        """Additive masks [1, 1, T, T]: one, or one a kind of layer where only some of the layers have a window."""
        dtype: torch.dtype = self.base.dtype
        distance = batch.positions[0][:, None] - batch.positions[0]
        masks: list[Tensor] = []
        for window in self.windows:
            visible = batch.mask if window is None else batch.mask & (distance < window)
            masks.append(
                torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(
                    ~visible, torch.finfo(dtype).min
                )
            )
        if len(masks) == 1:
            return masks[0]
        return {FULL if window is None else SLIDING: mask for window, mask in zip(self.windows, masks, strict=True)}

    def parameter_groups(self, learning_rate: float, tag_learning_rate: float) -> Iterator[dict[str, object]]:
        """What is trained, for an optimizer: weights, and the tags' rows."""
        rows = list(self.rows.values())
        weights = [p for p in self.model.parameters() if p.requires_grad and not any(p is row for row in rows)]
        yield {"params": weights, "lr": learning_rate}
        if rows:
            yield {"params": rows, "lr": tag_learning_rate, "weight_decay": 0.0}


def load_policy(config: RunConfig, encoder: Encoder) -> Policy:
    """The run's base model, with LoRA and tag rows that are fresh or those of ``init_adapter``.

    Raises InputError where that adapter has another rank or alpha than the run, or other tags.
    """
    folder = resolve_model(EngineConfig(model=config.model))
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    lora = None
    if config.mode == "lora":
        lora = LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"
        )
    if config.activation_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    policy = Policy(base, encoder, starting_rows(base, folder, encoder), lora)
    if config.init_adapter:
        load_adapter(policy, config.init_adapter)
    return policy


def starting_rows(base: Any, folder: Path, encoder: Encoder) -> dict[str, Tensor]:
    """The tags' rows [num_tags, hidden] of a checkpoint that has them; else each is the mean of some words' rows."""
    if not encoder.tags:
        return {}
    saved = load_file(folder / ROWS_FILE) if (folder / ROWS_FILE).is_file() else {}
    modules = {ROWS: base.get_input_embeddings()}
    if not base.config.tie_word_embeddings:
        modules[HEAD_ROWS] = base.get_output_embeddings()
    rows: dict[str, Tensor] = {}
    for name, module in modules.items():
        weight: Tensor = module.weight.detach()
        if name in saved:
            rows[name] = saved[name].to(weight.dtype)
        elif max(encoder.tags.ids) < len(weight):
            rows[name] = weight[list(encoder.tags.ids)].clone()
        else:
            words = [encoder.tokenizer.encode(TAG_MEANINGS[tag]) for tag in encoder.tags.names]
            meanings = [weight[ids].float().mean(0) for ids in words]
            rows[name] = torch.stack(meanings).to(weight.dtype)
    return rows


def load_adapter(policy: Policy, folder: Path) -> None:
    """Take over an adapter that ``save_adapter`` wrote; from one without tags the tags' rows start as a new run's do.
    Raises InputError where it does not fit."""
    path = folder / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        weights = load_file(folder / "adapter_model.safetensors")
        tags = load_tags(folder)
        rows = load_file(folder / ROWS_FILE) if policy.rows and tags else {}
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"init_adapter: {error}") from error
    lora = policy.model.peft_config["default"]
    for name, own, theirs in (("rank", lora.r, settings["r"]), ("alpha", lora.lora_alpha, settings["lora_alpha"])):
        if own != theirs:
            raise InputError(f"lora_{name} is {own}; the adapter {folder} has {theirs}, and so must the run")
    if tags and tags != policy.tags:
        raise InputError(f"init_adapter: the tags of {folder} are {tags}, the run's {policy.tags}")
    result: Any = set_peft_model_state_dict(policy.model, weights)
    misfits = [name for name in result.missing_keys if "lora_" in name] + result.unexpected_keys
    if misfits or (tags and set(rows) != set(policy.rows)):
        raise InputError(f"init_adapter: {folder} does not fit the model; differs in {[*misfits, *rows][0]}")
    with torch.no_grad():
        for name, values in rows.items():
            policy.rows[name].copy_(values)
