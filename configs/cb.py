"""CB (CommitmentBank, 3 classes) from TFDS.

    python -m icljax.main --config=configs/cb.py --workdir=/tmp/cb

Without a network to TFDS, give a folder: `--config.data.source=jsonl:DIR`.
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.default()
    config.task = "cb"
    config.data.source = "tfds:super_glue/cb"
    return config
