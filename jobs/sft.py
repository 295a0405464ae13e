"""Stage 1, as a Ray job: `pasta-ray train sft` with the cluster's Ray.

ray job submit --working-dir . -- python jobs/sft.py --config jobs/configs/pasta.yaml
"""

import sys

from pasta_ray.cli import main

main(["train", "sft", *sys.argv[1:]])
