"""Stage 2's workers without Ray Train: ``python -m tests.train.prefer_workers`` runs jobs as one rank of a group."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pasta_ray.train.config import PreferConfig
from pasta_ray.train.loop import load_encoder, with_adapter
from pasta_ray.train.policy import load_policy
from pasta_ray.train.prefer import PreferStage
from pasta_ray.train.sharding import initialize, load_state, save_state, set_learning_rate
from pasta_ray.train.update import evaluate, update


def run_job(job: dict[str, Any], folder: Path, run: Path) -> list[dict[str, float]]:
    """Metrics of all steps, then of what is held out; the state is saved after step ``save_at``, or resumed there."""
    config = with_adapter(PreferConfig.model_validate(job["config"]))
    encoder = load_encoder(config)
    stage = PreferStage(config)
    plan = stage.plan(encoder)
    engine = initialize(load_policy(config, encoder), config)
    run.mkdir(exist_ok=True)
    stage = stage.prepare(engine, plan, encoder, run)
    start = 0
    if job.get("resume"):
        loss, _ = stage.loss(engine, plan.steps[0][0], encoder)
        start = load_state(engine, folder / "state", loss)
    metrics = []
    for step in range(start, len(plan.steps)):
        set_learning_rate(engine, 0.9**step)
        metrics.append(update(engine, stage, plan.steps[step], encoder))
        if step + 1 == job.get("save_at"):
            (folder / "state").mkdir(exist_ok=True)
            save_state(engine, folder / "state", step + 1)
            dist.barrier()
    return [*metrics, evaluate(engine, stage, plan.validation, encoder)]


def main() -> None:
    rank, world, folder, jobs = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/group-of-{world}")
    results = {name: run_job(job, folder, folder / f"{name}-of-{world}") for name, job in jobs.items()}
    if rank == 0:
        (folder / f"results-of-{world}.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
