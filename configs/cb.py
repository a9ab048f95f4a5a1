"""CB (CommitmentBank, 3 classes) from TFDS.

    python -m icljax.main --config=configs/cb.py --workdir=/tmp/cb

Without a network to TFDS, give a folder: `--config.data.source=jsonl:DIR` (or
csv:DIR, parquet:DIR).
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    return config_lib.of_task("cb")
