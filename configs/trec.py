"""TREC (type of a question, 6 classes) from TFDS.

    python -m icljax.main --config=configs/trec.py --workdir=/tmp/trec

JSONL copies in the newer label order (ABBR, ENTY, DESC, HUM, LOC, NUM) also need
`--config.data.label_order=2,1,0,3,5,4`.
"""

from ml_collections import ConfigDict

from icljax import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.default()
    config.task = "trec"
    config.data.source = "tfds:trec"
    return config
