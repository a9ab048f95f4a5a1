r"""The study of docs/findings.md: SmolLM2-135M on the paper's six tasks, with every control.

    python -m icljax.main --config=configs/findings.py:short --workdir=DIR

Needs a folder data/ with the six tasks as JSONL files (data/TASK/train.jsonl and validation.jsonl
or test.jsonl); elsewhere: `--config.base.data.source=jsonl:FOLDER/{task}`. `short` is what
docs/findings.md reports: whole validation sets of SST-2, MR and CB, 400 examples of SST-5 and Subj,
100 of AG News with 3 seeds, small controls. Without it whole validation sets throughout (of AG News
1,000), 5 seeds, controls on 50 examples.
Killed at any moment, the same command goes on.
"""

from ml_collections import ConfigDict

from icljax import config as config_lib
from icljax.errors import UserError

_SHORT = (
    ("sst5_*_gd", {"eval.num_examples": 400, "controls.num_examples": 30}),
    ("subj_*_gd", {"eval.num_examples": 400, "controls.num_examples": 20}),
    ("cb_*_gd", {"controls.num_examples": 12}),
    (
        "agnews_*_gd",
        {"seeds": (1, 2, 3), "eval.num_examples": 100, "controls.num_examples": 12},
    ),
)


def get_config(how: str = "full") -> ConfigDict:
    if how not in ("full", "short"):
        raise UserError(f"configs/findings.py:{how}: expected full or short after the colon")
    config = config_lib.sweep()
    config.base.data.source = "jsonl:data/{task}"
    config.base.seeds = (1, 2, 3, 4, 5)
    config.base.eval.num_examples = 0
    config.base.controls.names = ("all",)
    by_layer = {
        "finetune.method": "lcgd",
        "seeds": (1, 2, 3),
        "eval.num_examples": 200,
        "controls.names": (),
    }
    config.settings = (("gd", {}), ("lcgd", by_layer))
    config.overrides = _SHORT if how == "short" else (("agnews_*_gd", {"eval.num_examples": 1000}),)
    return config
