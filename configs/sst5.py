"""SST-5 (sentence sentiment, 5 classes) from a folder of JSONL files: TFDS does not carry it.

    python -m icljax.main --config=configs/sst5.py --workdir=/tmp/sst5

Each of {train,validation}.jsonl holds lines like {"text": "...", "label": 0}, label 0 to 4.
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    return config_lib.of_task("sst5")
