"""Subj (objective or subjective sentence) from a folder of JSONL files: TFDS does not carry it.

    python -m icljax.main --config=configs/subj.py --workdir=/tmp/subj

Each of {train,test}.jsonl holds lines like {"text": "...", "label": 0}; 0 objective, 1 subjective.
"""

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib


def get_config() -> ConfigDict:
    return config_lib.of_task("subj")
