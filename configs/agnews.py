"""AG News (topic, 4 classes) from TFDS; the hub's copy stands in where it cannot be had.

    python -m icljax.main --config=configs/agnews.py --workdir=/tmp/agnews

The copy (hf:fancyzhx/ag_news) needs `pip install 'icljax[hub]'`; a warning says where it was used.
Without a network, give a folder: `--config.data.source=jsonl:DIR` (or csv:DIR, parquet:DIR).
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.of_task("agnews")
    config.data.fallback = "hf:fancyzhx/ag_news"  # TFDS takes it from a shared drive with quotas
    return config
