"""Prompts x updates: which links does the likeness of ICL and finetuning depend on?

    python -m icljax.main --config=configs/crossed.py:sst2 --workdir=/tmp/crossed

Eight seeds' demonstrations with right and with wrong labels make sixteen prompts and sixteen
updates; each is read once on 128 queries, and all pairs are compared.
"""

from ml_collections import ConfigDict

from icljax.experiments import crossed


def get_config(task: str = "sst2") -> ConfigDict:
    config = crossed.of_task(task)
    config.model = "qwen2.5-coder-1.5b"
    return config
