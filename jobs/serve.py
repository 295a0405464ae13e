"""The service, as a Ray job that runs until it is stopped: `pasta-ray serve` on the cluster's Ray.

ray job submit --no-wait --working-dir . -- python jobs/serve.py --config cluster/serve.yaml --host 0.0.0.0

`ray job stop` ends it. A service that shall outlive its job is deployed by `serve deploy` (cluster/README.md).
"""

import sys

from pasta_ray.cli import main

main(["serve", *sys.argv[1:]])
