"""What samples are worth, as a Ray job: `pasta-ray train score` with the cluster's Ray.

ray job submit --working-dir . -- python jobs/score.py samples.jsonl --out scored.jsonl
"""

import sys

from pasta_ray.cli import main

main(["train", "score", *sys.argv[1:]])
