"""Stage 2, as a Ray job: `pasta-ray train prefer` with the cluster's Ray.

ray job submit --working-dir . -- python jobs/prefer.py --config jobs/configs/prefer.yaml
"""

import sys

from pasta_ray.cli import main

main(["train", "prefer", *sys.argv[1:]])
