"""Subj (objective or subjective sentence) from the Hugging Face hub, hf:SetFit/subj.

    python -m icljax.main --config=configs/subj.py --workdir=/tmp/subj

Needs `pip install 'icljax[hub]'`. Without a network, give a folder:
`--config.data.source=jsonl:DIR`, in which each of {train,test}.jsonl holds lines like
{"text": "...", "label": 0}; 0 objective, 1 subjective (or csv:DIR, parquet:DIR).
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    return config_lib.of_task("subj")
