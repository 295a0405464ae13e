"""From answers to adapters, as a Ray job: `pasta-ray train pipeline` with the cluster's Ray.

ray job submit --working-dir . -- python jobs/pipeline.py --config jobs/configs/pipeline.yaml
"""

import sys

from pasta_ray.cli import main

main(["train", "pipeline", *sys.argv[1:]])
