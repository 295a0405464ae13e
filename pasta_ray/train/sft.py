"""Stage 1: supervised fine-tuning on annotated documents, by Ray Train and DeepSpeed. Read it from top to bottom."""

import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import ray.train
import torch
from deepspeed.ops import __compatible_ops__
from ray.train.torch import TorchConfig, TorchTrainer

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import resolve_model
from pasta_ray.errors import PastaError
from pasta_ray.lang import TagMap
from pasta_ray.train.config import SftConfig
from pasta_ray.train.data import Example, build_example, collate, pack, read_records
from pasta_ray.train.loss import mean_by_kind, next_token_loss
from pasta_ray.train.policy import Policy, load_policy, save_adapter

METRICS_FILE = "metrics.jsonl"


class TrainingError(PastaError):
    """Training cannot go on."""


def run_sft(config: SftConfig) -> Path:
    """Train, or go on with the run of the same name; returns the adapter's folder.

    Raises InputError for unusable documents before any worker starts, TrainingError where training itself fails.
    """
    read_records(config.documents)
    resolve_model(EngineConfig(model=config.model))
    runs = config.runs.resolve()
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"config": config.model_dump_json(), "runs": str(runs)},
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if config.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # its types are those of Train V1, it is V2's class
            name=config.name,
            storage_path=str(runs),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": _worker_environment(config)},
        ),
    )
    result = trainer.fit()
    if result.error:
        raise TrainingError(f"run {config.name}: {result.error}") from result.error
    return runs / config.name / "adapter"


def _worker_environment(config: SftConfig) -> dict[str, str]:
    environment = {"OMP_NUM_THREADS": str(config.threads_per_worker), "OMP_WAIT_POLICY": "PASSIVE"}
    return environment if config.use_gpu else environment | {"DS_ACCELERATOR": "cpu"}


def _train_worker(loop_config: dict[str, str]) -> None:
    config = SftConfig.model_validate_json(loop_config["config"])
    run = Path(loop_config["runs"]) / config.name
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.threads_per_worker)
    torch.manual_seed(config.seed)

    folder = resolve_model(EngineConfig(model=config.model))
    tokenizer = Tokenizer.load(folder, None)
    tags = TagMap.after(tokenizer.vocab_size) if config.tags else None
    policy = load_policy(
        folder, tokenizer, tags, rank=config.lora_rank, alpha=config.lora_alpha, precision=config.precision
    )
    examples = [build_example(record, tokenizer, tags) for record in read_records(config.documents)]
    steps = list(_steps(examples, config, world))
    engine = _initialize(policy, config, num_steps=len(steps))
    start = _resume(engine)

    for step, packs in enumerate(steps[start:], start + 1):
        began = time.perf_counter()
        metrics = _update(engine, packs[rank::world], step)
        metrics |= {"step": step, "num_steps": len(steps), "lr": engine.get_lr()[0]}
        metrics["tokens_per_s"] = sum(len(e) for p in packs for e in p) / (time.perf_counter() - began)
        if rank == 0:
            _log(run / METRICS_FILE, metrics)
        if step % config.checkpoint_every == 0 or step == len(steps):
            _checkpoint(engine, step, metrics)
        elif step % config.report_every == 0:
            ray.train.report(metrics)
    _save(policy, run / "adapter", rank, gather=config.zero_stage == 3)


def _steps(examples: list[Example], config: SftConfig, world: int) -> Iterator[list[list[Example]]]:
    """The packs of each update, all workers' together; packs that do not fill an update are left out of their epoch."""
    size = world * config.accumulate
    for epoch in range(config.epochs):
        packs = pack(examples, config.batch_tokens, config.seed + 1000 * epoch)
        for at in range(0, len(packs), size):
            if at + size <= len(packs):
                yield packs[at : at + size]


def _initialize(policy: Policy, config: SftConfig, num_steps: int) -> Any:
    """DeepSpeed's engine, linear warm-up and decay. It is handed a torch optimizer, for its own would compile."""
    __compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles a communication kernel at first use
    groups = list(policy.parameter_groups(config.learning_rate, config.tag_learning_rate))
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    warmup = max(1, round(config.warmup * num_steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, max(0.0, (num_steps - step) / max(1, num_steps - warmup)))

    engine, *_ = deepspeed.initialize(
        model=policy,
        model_parameters=[p for p in policy.parameters() if p.requires_grad],
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": config.accumulate,
            "gradient_clipping": config.clip,
            "zero_optimization": {"stage": config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": config.precision == "bf16"},
            "steps_per_print": 1_000_000,
        },
    )
    return engine


def _update(engine: Any, packs: list[list[Example]], step: int) -> dict[str, float]:
    """One optimizer step over this worker's packs; the mean of their losses, in nats a label."""
    totals: dict[str, list[float]] = {}
    for examples in packs:
        batch = collate(examples).to(engine.device)
        losses = next_token_loss(engine(batch), batch.labels)
        loss = losses.mean()
        if not math.isfinite(loss.item()):
            raise TrainingError(f"step {step}: loss is {loss.item()} on documents {', '.join(batch.example_ids)}")
        engine.backward(loss)
        engine.step()
        for name, value in mean_by_kind(losses, batch.kinds).items():
            totals.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}


def _resume(engine: Any) -> int:
    """Load the run's last checkpoint if it has one; returns the number of steps that are done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        _, state = engine.load_checkpoint(folder, load_module_strict=False)
    return int(state["step"])


def _checkpoint(engine: Any, step: int, metrics: dict[str, float]) -> None:
    """Every worker writes its share; Ray Train puts them together."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, client_state={"step": step}, exclude_frozen_parameters=True)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _log(path: Path, metrics: dict[str, float]) -> None:
    """Append one step's metrics, dropping lines of steps that a lost worker has to do again."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] < metrics["step"]]
    path.write_text("\n".join([*kept, json.dumps(metrics)]) + "\n", encoding="utf-8")


def _save(policy: Policy, folder: Path, rank: int, *, gather: bool) -> None:
    trainable = [p for p in policy.parameters() if p.requires_grad]
    with deepspeed.zero.GatheredParameters(trainable, modifier_rank=None, enabled=gather):
        if rank == 0:
            save_adapter(policy, folder)
