"""Answers to a file of prompts, as a Ray job: `pasta-ray batch` with the cluster's Ray.

ray job submit --working-dir . -- python jobs/generate.py prompts.jsonl --out answers.jsonl --num-workers 8

Submitted again after a kill, it goes on: every row gets one answer. Paths are those of the head's machine, so give
folders that outlive it.
"""

import sys

from pasta_ray.cli import main

main(["batch", *sys.argv[1:]])
