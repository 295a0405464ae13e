"""Answers to documents, as a Ray job: `pasta-ray annotate` with the cluster's Ray.

ray job submit --working-dir . -- python jobs/annotate.py answers.jsonl --out documents.jsonl --num-workers 8
"""

import sys

from pasta_ray.cli import main

main(["annotate", *sys.argv[1:]])
