"""What both stages share: Ray Train's workers, resuming, checkpoints, metrics. Read it from top to bottom."""

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer
from transformers import AutoConfig

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import load_tags, resolve_adapter, resolve_model
from pasta_ray.errors import InputError
from pasta_ray.lang import PRED_10X, ControlMap, PositionStrategy, TagMap
from pasta_ray.train.config import RunConfig
from pasta_ray.train.curves import draw_curves
from pasta_ray.train.data import Encoder, Tags
from pasta_ray.train.policy import Policy, load_policy
from pasta_ray.train.run_folder import RunFolder
from pasta_ray.train.saving import save_adapter, save_model
from pasta_ray.train.sharding import gathered, initialize, load_state, save_state, set_learning_rate
from pasta_ray.train.stage import M, Plan, Stage
from pasta_ray.train.update import TrainingError, evaluate, learning_rate_factor, update

C = TypeVar("C", bound=RunConfig)
CURVES_FILE = "curves.png"


def run_stage(stage: Stage[M]) -> Path:
    """Train, or go on with the run of the same name; returns the folder of its adapter, or of its model.

    Raises InputError for unusable input, or a run of the same name that began otherwise, before any worker starts;
    TrainingError where training itself fails.
    """
    config = stage.config
    folder = RunFolder(config)
    folder.claim(config)
    if folder.is_finished:
        return folder.result
    plan = stage.plan(load_encoder(config))
    folder.keep_plan(plan.report)
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # which says that a loop returns nothing; Train V2 hands on what it returns
        train_loop_config={"stage": stage, "plan": plan, "folder": folder},
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(**_scaling(config)),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as Train V1's, it is V2's
            name=config.name,
            storage_path=str(folder.path.parent),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": _worker_environment(config)},
        ),
    )
    result: Any = trainer.fit()
    if result.error:
        raise TrainingError(f"run {config.name}: {result.error}") from result.error
    if result.return_value:
        raise TrainingError(f"run {config.name}: {result.return_value}")
    return folder.result


def with_adapter(config: C) -> C:
    """``init_adapter``, if any, as a folder in place of a shipped adapter's name; LoRA's rank and alpha are the
    adapter's where the config does not set its own."""
    if not config.init_adapter:
        return config
    folder = resolve_adapter(str(config.init_adapter)).resolve()
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    lora = {"lora_rank": settings["r"], "lora_alpha": settings["lora_alpha"]}
    lora = {name: value for name, value in lora.items() if name not in config.model_fields_set}
    return config.model_copy(update={"init_adapter": folder, **lora})


def load_encoder(config: RunConfig) -> Encoder:
    """Tokenizer and tags of the run's model: those of the adapter or checkpoint that it starts from, else new ones."""
    folder = resolve_model(EngineConfig(model=config.model))
    if config.language == "plain":
        return Encoder(Tokenizer.load(folder, None), None)
    tags = (load_tags(config.init_adapter) if config.init_adapter else None) or load_tags(folder)
    if tags is None:
        tags = _new_tags(config, folder)
    kind = TagMap if config.language == "pasta" else ControlMap
    if not isinstance(tags, kind):
        raise InputError(f"language: is {config.language}, but the model writes {', '.join(tags.names)}")
    if isinstance(tags, TagMap) and config.positions not in (None, tags.positions.name):
        raise InputError(f"positions is {config.positions}; what the run starts from has {tags.positions.name}")
    return Encoder(Tokenizer.load(folder, tags), tags)


def _new_tags(config: RunConfig, folder: Path) -> Tags:
    """Behind the vocabulary."""
    size = max(AutoConfig.from_pretrained(folder).vocab_size, Tokenizer.load(folder, None).vocab_size)
    if config.language == "apar":
        return ControlMap.after(size)
    return TagMap.after(size, PositionStrategy.named(config.positions) if config.positions else PRED_10X)


def _scaling(config: RunConfig) -> dict[str, Any]:
    return {
        "num_workers": config.num_workers,
        "elastic_resize_monitor_interval_s": config.resize_every_s,
        "use_gpu": config.use_gpu,
        "resources_per_worker": {"CPU": 1} | ({"GPU": 1} if config.use_gpu else {}),
    }


def _worker_environment(config: RunConfig) -> dict[str, str]:
    environment = {"OMP_NUM_THREADS": str(config.threads_per_worker), "OMP_WAIT_POLICY": "PASSIVE"}
    return environment if config.use_gpu else environment | {"DS_ACCELERATOR": "cpu"}


def _work(loop_config: dict[str, Any]) -> str | None:
    """What each worker does; returns why training cannot go on where no restart would help."""
    stage, plan, folder = loop_config["stage"], loop_config["plan"], loop_config["folder"]
    torch.set_num_threads(stage.config.threads_per_worker)
    torch.manual_seed(stage.config.seed)
    encoder = load_encoder(stage.config)
    policy = load_policy(stage.config, encoder)
    engine = initialize(policy, stage.config)
    stage = stage.prepare(engine, plan, encoder, folder.path)
    try:
        _train(engine, stage, plan, encoder, folder)
    except TrainingError as error:
        return str(error)
    with gathered(engine):
        if dist.get_rank() == 0:
            _save(policy, stage.config, folder)
    dist.barrier()
    return None


def _train(engine: Any, stage: Stage[M], plan: Plan[M], encoder: Encoder, folder: RunFolder) -> None:
    config, is_first, num_steps = stage.config, dist.get_rank() == 0, len(plan.steps)
    start = _resume(engine, stage, plan, encoder)
    if is_first:
        folder.forget_after(start)
    for step, micro_batches in enumerate(plan.steps[start:], start + 1):
        began = time.perf_counter()
        factor = learning_rate_factor(step, num_steps, config.warmup)
        set_learning_rate(engine, factor)
        try:
            metrics = update(engine, stage, micro_batches, encoder)
        except TrainingError as error:
            raise TrainingError(f"step {step}: {error}") from error
        metrics |= {"step": step, "num_steps": num_steps, "lr": factor * config.learning_rate}
        metrics["num_workers"] = dist.get_world_size()
        metrics["tokens_per_s"] = sum(m.num_tokens for m in micro_batches) / (time.perf_counter() - began)
        is_checkpoint = step % config.checkpoint_every == 0 or step == num_steps
        if is_checkpoint and plan.validation:
            values = evaluate(engine, stage, plan.validation, encoder)
            metrics |= {f"val_{name}": value for name, value in values.items() if name != "fill"}
        if is_first:
            folder.log(metrics)
        if is_checkpoint:
            if is_first:
                draw_curves(folder.read_log(), folder.path / CURVES_FILE, config.name)
            _checkpoint(engine, step, metrics)
        elif step % config.report_every == 0:
            ray.train.report(metrics)


def _resume(engine: Any, stage: Stage[M], plan: Plan[M], encoder: Encoder) -> int:
    """Load the run's last checkpoint if it has one; returns the number of steps that are done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    loss, _ = stage.loss(engine, plan.steps[0][0], encoder)
    with checkpoint.as_directory() as state:
        return load_state(engine, Path(state), loss)


def _checkpoint(engine: Any, step: int, metrics: dict[str, float]) -> None:
    """Every worker writes its share; Ray Train puts them together."""
    with tempfile.TemporaryDirectory() as state:
        save_state(engine, Path(state), step)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(state))


def _save(policy: Policy, config: RunConfig, folder: RunFolder) -> None:
    """The result in one move: a folder that is there is whole."""
    unfinished = folder.result.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    if policy.is_lora:
        save_adapter(policy, unfinished)
    else:
        save_model(policy, resolve_model(EngineConfig(model=config.model)), unfinished)
    unfinished.replace(folder.result)
