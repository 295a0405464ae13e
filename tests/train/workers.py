"""Training workers without Ray Train: ``python -m tests.train.workers`` runs a list of jobs as one rank of a group."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pasta_ray.train.config import SftConfig
from pasta_ray.train.loop import load_encoder
from pasta_ray.train.policy import load_policy
from pasta_ray.train.sft import SftStage
from pasta_ray.train.sharding import initialize, load_state, save_state, set_learning_rate
from pasta_ray.train.update import TrainingError, evaluate, update


def run_job(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Losses of a job's steps; it may begin from a state that another group wrote, and write one half-way."""
    config = SftConfig.model_validate(json.loads((folder / "config.json").read_text(encoding="utf-8")) | job["config"])
    stage, encoder = SftStage(config), load_encoder(config)
    plan = stage.plan(encoder)
    torch.manual_seed(config.seed)
    engine = initialize(load_policy(config, encoder), config)
    start = 0
    if "resume" in job:
        wait_for(folder / job["resume"] / "done")
        loss, _ = stage.loss(engine, plan.steps[0][0], encoder)
        start = load_state(engine, folder / job["resume"], loss)
    metrics = []
    for step in range(start, job["steps"]):
        set_learning_rate(engine, 0.9**step)
        try:
            metrics.append(update(engine, stage, plan.steps[step % len(plan.steps)], encoder))
        except TrainingError as error:
            return {"error": str(error), "losses": [m["loss"] for m in metrics]}
        if step + 1 == job.get("save_at"):
            (folder / job["save"]).mkdir(exist_ok=True)
            save_state(engine, folder / job["save"], step + 1)
            dist.barrier()
            (folder / job["save"] / "done").touch()
    validation = evaluate(engine, stage, plan.validation, encoder)
    return {
        "losses": [m["loss"] for m in metrics],
        "topics": [m["loss_topic"] for m in metrics],
        "norms": [m["grad_norm"] for m in metrics],
        "fill": [m["fill"] for m in metrics],
        "validation": validation["loss"],
    }


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.1)


def main() -> None:
    rank, world, folder, jobs = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/group-of-{world}")
    results = {name: run_job(job, folder) for name, job in jobs.items()}
    if rank == 0:
        (folder / f"results-of-{world}.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
