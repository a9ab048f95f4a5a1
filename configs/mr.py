"""MR (movie reviews, 2 classes) with SmolLM2-135M, all from the package index.

python -m icljax.main --config=configs/mr.py --workdir=/tmp/mr
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.of_task("mr")
    config.data.balanced = True
    return config
