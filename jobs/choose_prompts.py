"""Choose stage 2's prompts from a pool of instructions: questions as people ask them, most of which can split.

    python jobs/choose_prompts.py --pool train_pool.jsonl --not-in alpacaeval_dev.jsonl --out prompts.jsonl

The pool is JSON lines with id, instruction, output, structure, source and license. Other people's benchmark prompts,
prompts with a context, and prompts that share a run of eight words with an evaluation prompt are left out.
"""

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

from pasta_ray.train.jsonl import read_json_lines, to_line
from pasta_ray.train.overlap import all_gram_hashes, gram_hashes

SHARES = {"structured": 0.48, "asks": 0.40, "plain": 0.12}
ASKS_FOR_PARTS = re.compile(
    r"\b(list|what are|how|why|give|name|suggest|ideas?|tips|ways|describe|explain|compare|tell me|some|steps|"
    r"reasons|examples?|difference|benefits|best|recommend|plan|guide|write|what is)\b",
    re.IGNORECASE,
)
ORIGIN = ("id", "instruction", "source", "license")


def kind_of(record: dict[str, Any]) -> str:
    if record["structure"] != "plain":
        return "structured"
    asks = ASKS_FOR_PARTS.search(record["instruction"]) and len(record["output"]) > 150
    return "asks" if asks else "plain"


def is_fit(record: dict[str, Any], forbidden: set[int]) -> bool:
    fit = not record.get("benchmark") and record.get("split", "train") == "train"
    alone = not (record.get("input") or record.get("system"))
    return (
        fit and alone and 15 <= len(record["instruction"]) <= 300 and not gram_hashes(record["instruction"]) & forbidden
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--not-in", type=Path, nargs="*", default=[], help="files of evaluation prompts")
    parser.add_argument("--leave-out", nargs="*", default=["gpteacher-roleplay"], help="sources of the pool")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=750)
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()

    forbidden = all_gram_hashes(record["instruction"] for path in args.not_in for _, record in read_json_lines(path))
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in SHARES}
    for _, record in read_json_lines(args.pool):
        record["instruction"] = record["instruction"].strip()
        if record["source"] not in args.leave_out and is_fit(record, forbidden):
            by_kind[kind_of(record)].append({key: record[key] for key in ORIGIN})
    rng = random.Random(args.seed)
    chosen = []
    for kind, share in SHARES.items():
        rng.shuffle(by_kind[kind])
        chosen += by_kind[kind][: round(share * args.num)]
    rng.shuffle(chosen)
    args.out.write_text("".join(map(to_line, chosen)), encoding="utf-8")
    print(json.dumps({"prompts": len(chosen), "fit": {kind: len(records) for kind, records in by_kind.items()}}))


if __name__ == "__main__":
    main()
