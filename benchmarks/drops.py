"""How much bodies miss their siblings: what the ``independence`` annotator's δ is chosen from.

    python benchmarks/drops.py --answers train_pool.jsonl --num 60

Every level's candidate of each answer is measured, whether or not it would be kept. First bodies, which have no
siblings before them, are left out.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from pasta_ray.engine.config import DEFAULT_MODEL, EngineConfig
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import resolve_model
from pasta_ray.eval.bench.machine import commit
from pasta_ray.train.annotate import Selection, unfit
from pasta_ray.train.annotators.independence import IndependenceConfig
from pasta_ray.train.pairs import read_pairs

DELTAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
PERCENTILES = (10, 25, 50, 75, 90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, nargs="+", required=True)
    parser.add_argument("--num", type=int, default=60, help="answers with at least one candidate")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    folder = resolve_model(EngineConfig(model=args.model))
    tokenizer = Tokenizer.load(folder, None)
    annotator = IndependenceConfig().load(folder, tokenizer)
    pairs = read_pairs(args.answers)
    random.Random(args.seed).shuffle(pairs)
    drops: dict[str, list[float]] = defaultdict(list)
    num_answers = 0
    for pair in pairs:
        if num_answers == args.num:
            break
        if unfit(pair, lambda text: len(tokenizer.encode(text)), Selection()):
            continue
        candidates = annotator.candidates(pair)
        num_answers += bool(candidates)
        for candidate in candidates:
            (values,) = annotator.drops([(pair, candidate.document)])
            remaining = iter(values)
            for group in candidate.groups:
                drops[candidate.level] += [next(remaining) for _ in group][1:]
        print(num_answers, {level: len(values) for level, values in drops.items()}, file=sys.stderr)
    drops["all"] = [value for values in drops.values() for value in values]
    result = {
        "command": " ".join(sys.argv),
        "commit": commit(),
        "answers": num_answers,
        "levels": {level: describe(values) for level, values in drops.items()},
    }
    print(json.dumps(result, indent=2))


def describe(drops: list[float]) -> dict[str, object]:
    """Percentiles in nats a token, and the share of bodies that each δ keeps."""
    return {
        "bodies": len(drops),
        "percentiles": {p: round(float(np.percentile(drops, p)), 3) for p in PERCENTILES},
        "share_below": {delta: round(float(np.mean(np.array(drops) < delta)), 3) for delta in DELTAS},
    }


if __name__ == "__main__":
    main()
