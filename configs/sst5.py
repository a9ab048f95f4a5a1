"""SST-5 (sentence sentiment, 5 classes) from the Hugging Face hub, hf:SetFit/sst5.

    python -m icljax.main --config=configs/sst5.py --workdir=/tmp/sst5

Needs `pip install 'icljax[hub]'`. Without a network, give a folder:
`--config.data.source=jsonl:DIR`, in which each of {train,validation}.jsonl holds lines like
{"text": "...", "label": 0}, label 0 to 4 (or csv:DIR, parquet:DIR).
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    return config_lib.of_task("sst5")
