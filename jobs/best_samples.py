"""The best scored samples of each prompt, as documents to go on training with (`pasta-ray train sft`).

    python jobs/best_samples.py scored.jsonl --lambda 2 --num 6 --out documents.jsonl

Samples are ranked by speedup + λ·quality, as stage 2's pairs are. Left out are those that were cut off or have no
quality, and a document that a better sample of its prompt has too.
"""

import argparse
import json
from pathlib import Path

from pasta_ray.train.jsonl import to_line
from pasta_ray.train.preferences import Scored, by_prompt, read_scored


def best(samples: list[Scored], quality_weight: float, num: int) -> list[Scored]:
    fit = [sample for sample in samples if sample.finished and sample.quality is not None]
    fit.sort(key=lambda sample: sample.score(quality_weight), reverse=True)
    different = {sample.document: sample for sample in reversed(fit)}
    return [sample for sample in fit if different[sample.document] is sample][:num]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scored", type=Path, help="what `pasta-ray train score` wrote")
    parser.add_argument("--lambda", dest="quality_weight", type=float, default=2.0)
    parser.add_argument("--num", type=int, default=6, help="documents of each prompt")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    prompts = by_prompt(read_scored([args.scored], need_quality=False))
    chosen = [sample for samples in prompts for sample in best(samples, args.quality_weight, args.num)]
    lines = (sample.model_dump(include={"id", "instruction", "document"}) for sample in chosen)
    args.out.write_text("".join(map(to_line, lines)), encoding="utf-8")
    print(json.dumps({"prompts": len(prompts), "documents": len(chosen)}))


if __name__ == "__main__":
    main()
