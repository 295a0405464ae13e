"""Samples of a model, as a Ray job: `pasta-ray train sample` with the cluster's Ray.

ray job submit --working-dir . -- python jobs/sample.py --prompts prompts.jsonl --out samples.jsonl --num-workers 4
"""

import sys

from pasta_ray.cli import main

main(["train", "sample", *sys.argv[1:]])
