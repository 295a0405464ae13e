"""DeepSpeed around a policy: ZeRO, and a training state that any number of workers can read.

DeepSpeed's own checkpoints hold each worker's slice of flattened parameters, and fit that number of workers only. Here
each parameter, with its two moments of Adam, is put together and written whole, in float32, by one of the workers.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops import __compatible_ops__
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from pasta_ray.train.config import RunConfig
from pasta_ray.train.policy import Policy

MOMENTS = ("exp_avg", "exp_avg_sq")


def initialize(policy: Policy, config: RunConfig) -> Any:
    """DeepSpeed's engine. It is handed a torch optimizer, for its own would compile."""
    __compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles a communication kernel at first use
    groups = list(policy.parameter_groups(config.learning_rate, config.tag_learning_rate))
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    for group in optimizer.param_groups:
        group["full_lr"] = group["lr"]  # what `set_learning_rate` takes a share of
    engine, *_ = deepspeed.initialize(
        model=policy,
        model_parameters=[p for p in policy.parameters() if p.requires_grad],
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # `update` says where a step ends
            "gradient_clipping": config.clip,
            "zero_optimization": {"stage": config.zero_stage} | _offload(config),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": config.precision == "bf16"},
            "steps_per_print": 1_000_000,
        },
    )
    return engine


def _offload(config: RunConfig) -> dict[str, dict[str, str]]:
    names = {"optimizer": "offload_optimizer", "parameters": "offload_param"}
    return {names[what]: {"device": "cpu"} for what in config.offload}


def set_learning_rate(engine: Any, factor: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = factor * group["full_lr"]


def take_step(engine: Any) -> float:
    """DeepSpeed's optimizer step; returns the norm of the gradient before clipping, inf where that is not finite."""
    norm = None
    if engine.optimizer is engine.basic_optimizer:  # ZeRO 0, which does not say
        norm = torch.nn.utils.get_total_norm([p.grad for p in _trainable(engine).values() if p.grad is not None])
    engine.step()
    value = float(engine.get_global_grad_norm() if norm is None else norm)
    return value if value >= 0 else math.inf  # -1 is DeepSpeed's word for what is not finite


@contextmanager
def gathered(engine: Any) -> Iterator[None]:
    """The trainable parameters whole on every worker."""
    enabled = engine.zero_optimization_partition_weights()
    with deepspeed.zero.GatheredParameters(list(_trainable(engine).values()), modifier_rank=None, enabled=enabled):
        yield


def save_state(engine: Any, folder: Path, step: int) -> None:
    """This worker's share of the training state, into a file of its own: every ``world``-th parameter."""
    rank, world = dist.get_rank(), dist.get_world_size()
    _link_moments(engine)
    own: dict[str, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(_trainable(engine).items()):
        whole = {key: _get(engine, parameter, key).cpu().clone() for key in ("value", *MOMENTS)}  # all workers together
        if index % world == rank:
            own[name] = whole
    torch.save({"step": step, "parameters": own}, folder / f"state-{rank}-of-{world}.pt")


def load_state(engine: Any, folder: Path, loss: Tensor) -> int:
    """Take over what any number of workers wrote; returns the step. ``loss`` is any loss of this model's.

    Optimizers make their state at their first step: one is done for that, and what it changed is overwritten.
    """
    step, saved = 0, dict[str, dict[str, Tensor]]()
    for path in sorted(folder.glob("state-*.pt")):
        part = torch.load(path, weights_only=True)
        step = part["step"]
        saved |= part["parameters"]
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(loss)
    engine.step()
    _link_moments(engine)
    for name, parameter in _trainable(engine).items():
        for key, value in saved[name].items():
            _set(engine, parameter, key, value)
    for state in engine.basic_optimizer.state.values():
        state["step"].fill_(step)
    return step


def _trainable(engine: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def _link_moments(engine: Any) -> None:
    """Tell parameters of ZeRO 1 and 2 where their moments are. DeepSpeed does so behind the first group's first step,
    when the second group, the tags' rows, has none yet."""
    if engine.optimizer is engine.basic_optimizer or engine.zero_optimization_partition_weights():
        return
    flat_groups = engine.basic_optimizer.param_groups
    for group, flat_group in zip(engine.module.parameter_groups(0, 0), flat_groups, strict=True):
        (flat,) = flat_group["params"]
        lazy_init_hp_params_optimizer_state(group["params"], flat, engine.basic_optimizer.state)


def _get(engine: Any, parameter: nn.Parameter, key: str) -> Tensor:
    """A parameter's float32 value or one of its moments, whole, on every worker."""
    if engine.optimizer is engine.basic_optimizer:  # ZeRO 0 in float32
        value = parameter.detach() if key == "value" else engine.optimizer.state[parameter][key]
    elif key == "value":
        value = safe_get_full_fp32_param(parameter)
    else:
        value = safe_get_full_optimizer_state(parameter, key)
    assert value is not None, "the parameter is not DeepSpeed's"
    return torch.as_tensor(value)


def _set(engine: Any, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    if key != "value":
        if engine.optimizer is engine.basic_optimizer:
            engine.optimizer.state[parameter][key].copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value.to(engine.device), key)
        return
    safe_set_full_fp32_param(parameter, value.to(engine.device))
    enabled = engine.zero_optimization_partition_weights()
    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=enabled):
        parameter.copy_(value)  # what the model computes with, beside the float32 original
