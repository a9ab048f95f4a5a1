"""AG News (topic, 4 classes) from TFDS.

    python -m icljax.main --config=configs/agnews.py --workdir=/tmp/agnews

Without a network to TFDS, give a folder: `--config.data.source=jsonl:DIR`.
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.default()
    config.task = "agnews"
    config.data.source = "tfds:ag_news_subset"
    return config
