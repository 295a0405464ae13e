"""How likely a base model finds given tokens, each seeing only what its layout lets it see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pasta_ray.engine.weights import no_progress_bar
from pasta_ray.errors import InputError, ModelError
from pasta_ray.train.data import Example, collate

HEAD_ROWS = 256  # of logits at a time: a row of a large vocabulary takes a megabyte


class Likelihood:
    """A model that scores examples in packed rows of about ``row_tokens`` tokens; a longer example is a row by itself.

    What a token sees is its layout's matter, whatever else is in its row. Sliding windows of the model's own are not
    applied: examples are to be shorter than those.
    """

    def __init__(self, model: PreTrainedModel, device: str = "cpu", row_tokens: int = 512) -> None:
        self._model: Any = model.to(torch.device(device)).eval()  # type: ignore[arg-type]  # transformers' own stub
        self._row_tokens = row_tokens

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", dtype: str = "float32", row_tokens: int = 512) -> "Likelihood":
        """The model in ``folder``. Raises ModelError where it cannot be loaded, InputError for a device that is not
        there."""
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"device is {device!r}, and torch finds no GPU here; allowed: cpu")
        try:
            with no_progress_bar():
                model = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
                )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{folder}: no model can be loaded: {error}") from error
        return cls(model, device, row_tokens)

    @property
    def num_positions(self) -> int:
        """How many positions the model knows: no token of an example may stand at a later one."""
        return int(self._model.config.max_position_embeddings)

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> list[Tensor]:
        """Each example's natural log-probabilities of its labels, float32 [num_labels], on the CPU."""
        scores: list[Tensor] = []
        for row in _rows(examples, self._row_tokens):
            scores += self._score_row(row)
        return scores

    def _score_row(self, row: Sequence[Example]) -> list[Tensor]:
        batch = collate(row).to(self._model.device)
        bias = torch.zeros(batch.mask.shape, dtype=self._model.dtype, device=self._model.device)
        bias = bias.masked_fill(~batch.mask, torch.finfo(bias.dtype).min)
        inputs = {"attention_mask": bias, "position_ids": batch.positions, "use_cache": False}
        hidden = self._model.model(batch.ids, **inputs).last_hidden_state[0, batch.sources]
        head = self._model.get_output_embeddings()
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        scores = []
        for states, labels in zip(torch.split(hidden, HEAD_ROWS), torch.split(batch.labels, HEAD_ROWS), strict=True):
            logits = head(states).float()
            if cap:
                logits = torch.tanh(logits / cap) * cap
            scores.append(logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0])
        num_labels = [sum(source is not None for source in example.layout.label_source) for example in row]
        return list(torch.split(torch.cat(scores).cpu(), num_labels))


def _rows(examples: Sequence[Example], row_tokens: int) -> list[list[Example]]:
    """Examples in order, as many in a row as fit."""
    rows: list[list[Example]] = []
    room = 0
    for example in examples:
        if not rows or len(example) > room:
            rows.append([])
            room = row_tokens
        rows[-1].append(example)
        room -= len(example)
    return rows
