"""MR (movie reviews, 2 classes) with SmolLM2-135M, all from the package index.

    python -m icljax.main --config=configs/mr.py --workdir=/tmp/mr

Measured on 2 CPU cores (200 validation examples, 16 demonstrations, seeds
1 to 3): accuracy ZSL .575, ICL .565, FT .685; batch-calibrated .770, .835, .780; SimAOU .208
(random .000, untrained .133 and .177), SimAM .852 (before finetuning .835), Kendall .077 (random
.000), SimUpdate .120 (random .000, untrained -.095 and -.077).
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.of_task("mr")
    config.data.balanced = True
    return config
