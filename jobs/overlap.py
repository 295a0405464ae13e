"""Check training prompts against evaluation prompts, and keep both as hashes for the test that checks it again.

    python jobs/overlap.py --training documents.jsonl samples.jsonl --evaluation alpacaeval_dev.jsonl --hashes FOLDER

Every file is JSON lines with `instruction` (and `input`). Prints the training prompts that share a run of eight words
with an evaluation prompt, and exits with 1 if there are any.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from pasta_ray.train.jsonl import read_json_lines
from pasta_ray.train.overlap import all_gram_hashes, overlapping


def read_prompts(paths: list[Path]) -> list[str]:
    records = [record for path in paths for _, record in read_json_lines(path)]
    return list(dict.fromkeys(" ".join(filter(None, (r["instruction"], r.get("input")))) for r in records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, nargs="+", required=True)
    parser.add_argument("--evaluation", type=Path, nargs="+", required=True)
    parser.add_argument("--hashes", type=Path, help="folder for training.npy and evaluation.npy: uint64, sorted")
    args = parser.parse_args()

    training, evaluation = read_prompts(args.training), read_prompts(args.evaluation)
    forbidden = all_gram_hashes(evaluation)
    found = overlapping(training, forbidden)
    for index in found:
        print(training[index])
    print(
        f"{len(found)} of {len(training)} training prompts overlap {len(evaluation)} evaluation prompts",
        file=sys.stderr,
    )
    if args.hashes:
        args.hashes.mkdir(parents=True, exist_ok=True)
        for name, hashes in (("training", all_gram_hashes(training)), ("evaluation", forbidden)):
            np.save(args.hashes / f"{name}.npy", np.array(sorted(hashes), dtype=np.uint64))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
