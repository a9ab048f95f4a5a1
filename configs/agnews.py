"""AG News (topic, 4 classes) from TFDS.

    python -m icljax.main --config=configs/agnews.py --workdir=/tmp/agnews

Without a network to TFDS, give a folder: `--config.data.source=jsonl:DIR`.
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    return config_lib.of_task("agnews")
